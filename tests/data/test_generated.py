"""The embedded domains: the same images whoever asks, and no peeking from one split into another."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from fourfold.config import ConfigError
from fourfold.data import generated
from fourfold.data.generated import glyphs

SMALL = {
    "glyphs": {"seed": 0, "train": 3, "val": 2, "test": 2},
    "glyph_digits": {"seed": 0, "train": 4, "test": 3},
    "digits": {"seed": 0, "train": 20},
    "textures": {"seed": 0, "train": 4, "test": 3},
    "dialled": {"seed": 0, "train": 4, "test": 3, "distance": 0.4, "towards": "clutter"},
}
SPLITS = ("train", "val", "test")


def images(made, split):
    return made[split][0]


def splits_of(made):
    return [split for split in SPLITS if split in made]


@pytest.mark.parametrize("name", SMALL)
def test_images_are_rgb_pixels_with_balanced_labels(name):
    made = generated.load(name, SMALL[name])
    for split in splits_of(made):
        pixels, labels = made[split]
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (len(labels), 3, 32, 32)
        assert labels.dtype == torch.int64
        counts = labels.bincount(minlength=len(made["classes"]))
        if (name, split) == ("digits", "test"):  # what training leaves of unequal classes
            assert counts.sum() == len(load_digits().target) - 10 * SMALL[name]["train"]
        else:
            assert counts.tolist() == [SMALL[name][split]] * len(made["classes"])


def digest(name):
    made = generated.load(name, SMALL[name])
    return [hashlib.sha256(part.numpy().tobytes()).hexdigest() for split in splits_of(made) for part in made[split]]


def test_the_same_arguments_give_the_same_images_in_any_process_and_state():
    program = (
        "import torch\n"
        "from test_generated import SMALL, digest\n"
        "torch.manual_seed(7); torch.rand(3)\n"
        "print(*(part for name in reversed(SMALL) for part in digest(name)))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == [part for name in reversed(SMALL) for part in digest(name)]


@pytest.mark.parametrize("name", SMALL)
def test_another_seed_gives_other_images(name):
    first, second = (generated.load(name, SMALL[name] | {"seed": seed}) for seed in (0, 1))
    assert not torch.equal(images(first, "train"), images(second, "train"))
    assert not torch.equal(images(first, "test"), images(second, "test"))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "digits"])
def test_more_training_images_leave_the_test_images_alone(name):
    few, more = (generated.load(name, SMALL[name] | {"train": size}) for size in (4, 6))
    assert torch.equal(images(few, "test"), images(more, "test"))


@pytest.mark.parametrize("name", SMALL)
def test_no_image_is_in_two_splits(name):
    made = generated.load(name, SMALL[name])
    everything = [image.numpy().tobytes() for split in splits_of(made) for image in images(made, split)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("name", SMALL)
def test_no_global_random_number_is_drawn(name):
    generated._load.cache_clear()
    before = torch.random.get_rng_state()
    generated.load(name, SMALL[name])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_handwritten_digits_are_all_there_once():
    made = generated.load("digits", SMALL["digits"])
    ours = torch.cat([images(made, "train"), images(made, "test")]).float().mean((1, 2, 3)) * 16 / 255
    theirs = torch.from_numpy(load_digits().images).float().mean((1, 2))
    # bilinear enlargement by four keeps the mean up to what it repeats at the border; labels decide the rest
    assert len(ours) == len(theirs)
    assert (ours.sort().values - theirs.sort().values).abs().max() < 0.5
    labels = torch.cat([made["train"][1], made["test"][1]])
    assert labels.bincount().tolist() == torch.from_numpy(load_digits().target).bincount().tolist()


def test_the_source_has_never_seen_a_target_class():
    letters = generated.load("glyphs", SMALL["glyphs"])["classes"]
    assert len(set(letters)) == 75
    assert not set(letters) & set(generated.load("glyph_digits", SMALL["glyph_digits"])["classes"])
    assert not any(letter.isdigit() for letter in letters)


def test_every_class_has_a_form_in_most_fonts_and_none_is_blank():
    for classes in (glyphs.LETTERS, glyphs.DIGITS):
        bitmaps, owners = glyphs._bank(classes)
        assert owners.bincount(minlength=len(classes)).min() >= 16
        assert (bitmaps.flatten(1).float().mean(1) > 5).all()
        assert bitmaps[:, [0, 1, -2, -1]].max() == 0  # centred, with a margin


def test_colour_does_not_tell_a_texture():
    pixels, labels = generated.load("textures", {"seed": 0, "train": 200, "test": 1})["train"]
    colours = pixels.float().mean((2, 3))
    between = torch.stack([colours[labels == label].mean(0) for label in range(10)]).std(0)
    # means of 200 random colours differ by about 1 / sqrt(200) of one colour's spread; four times that would be a hint
    assert (between < 4 * colours.std(0) / 200**0.5).all()


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("glyph", {}, "did you mean glyphs"),
        ("textures", {"seed": 0, "train": 4}, "test"),
        ("digits", {"seed": 0, "train": 20, "shots": 3}, "shots"),
        ("digits", {"seed": 0, "train": 174}, "choose 1 to 173"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        generated.load(name, kwargs)


def dialled(towards, distance):
    return generated.load("dialled", {"seed": 0, "train": 6, "test": 3, "distance": distance, "towards": towards})["train"]


@pytest.mark.parametrize("towards", ["textures", "clutter"])
def test_a_dial_begins_at_the_digits_and_leaves_them_steadily(towards):
    near, labels = generated.load("glyph_digits", {"seed": 0, "train": 6, "test": 3})["train"]
    images, same = dialled(towards, 0.0)
    assert torch.equal(images, near)
    assert torch.equal(same, labels)
    away = [(dialled(towards, d)[0].float() - near.float()).abs().mean().item() for d in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert away == sorted(away)
    assert away[0] < away[1]


def test_at_its_end_one_dial_has_no_digit_left_and_the_other_still_has():
    """Ink is where the digit itself is bright."""
    near = dialled("textures", 0.0)[0].float()
    ink, paper = near[:, 0] > 200, near[:, 0] < 60

    def contrast(images):
        images = images.float().mean(dim=1)
        return (images[ink].mean() - images[paper].mean()).item()

    assert abs(contrast(dialled("textures", 1.0)[0])) < 20
    assert contrast(dialled("clutter", 1.0)[0]) > 60


@pytest.mark.parametrize(
    ("towards", "distance", "words"), [("texture", 0.5, "did you mean textures?"), ("clutter", 1.5, "0 (glyph_digits) to 1")]
)
def test_a_dial_that_is_none_is_refused_in_one_sentence(towards, distance, words):
    with pytest.raises(ConfigError) as refused:
        dialled(towards, distance)
    assert words in str(refused.value)
