"""What becomes of an image on its way to the model."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms._presets import ImageClassification

from fourfold.config import ConfigError
from fourfold.data.transforms import evaluation, mixer, normalizer, training, with_channels

from .making import Preprocessing, transform

PHOTO = Preprocessing(size=24, resize=32)
RECIPES = ("none", "light", "standard", "randaugment", "trivialaugment")


def noise(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(256, (channels, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(height, width).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(50, 70), (90, 40), (10, 14)])  # the last one is enlarged
def test_evaluation_equals_torchvision_s_own_preset(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    preset = ImageClassification(crop_size=24, resize_size=32, mean=PHOTO.mean, std=PHOTO.std)
    ours = evaluation(PHOTO, 3, "stack")(image)
    assert ours.dtype == torch.uint8
    # not bit for bit: we divide by 255 * std once
    torch.testing.assert_close(normalizer(PHOTO)(ours[None])[0], preset(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
@pytest.mark.parametrize("kind", ["picture", "grey picture", "tensor", "grey tensor"])
def test_every_recipe_gives_bytes_of_the_final_size(recipe: str, in_chans: int, interpolation: str, kind: str) -> None:
    images: dict[str, Any] = {
        "picture": picture(30, 50),
        "grey picture": picture(30, 50).convert("L"),
        "tensor": noise(30, 50),
        "grey tensor": noise(30, 50, 1),
    }
    config = transform(recipe, hflip=True)
    prepare = training(config, Preprocessing(24, 32, interpolation), in_chans, "stack")
    made = prepare(images[kind])
    assert made.dtype == torch.uint8
    assert made.shape == (in_chans, 24, 24)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("collate", "shape"), [("pad", (12, 24)), ("resize", (24, 24))])
def test_whole_images_are_fitted_or_squeezed(recipe: str, collate: str, shape: tuple[int, int]) -> None:
    made = training(transform(recipe), PHOTO, 3, collate)(picture(20, 40))
    assert made.shape[1:] == (shape if recipe in ("none", "light") else (24, 24))


def test_no_augmentation_is_the_evaluation() -> None:
    image = picture(40, 50)
    plain = training(transform("none", hflip=True), PHOTO, 3, "stack")
    assert torch.equal(plain(image), evaluation(PHOTO, 3, "stack")(image))


@pytest.mark.parametrize("recipe", ["light", "standard"])
def test_flips_happen_only_when_asked_for(recipe: str) -> None:
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)  # brighter to the right
    same = Preprocessing(32, 32)

    def flipped(hflip: bool) -> list[bool]:
        prepare = training(transform(recipe, hflip=hflip), same, 3, "stack")
        return [bool((made := prepare(ramp).float())[0, 16, 8] > made[0, 16, 24]) for _ in range(40)]

    torch.manual_seed(0)
    assert not any(flipped(hflip=False))
    assert 8 < sum(flipped(hflip=True)) < 32


def test_light_shifts_by_an_eighth_at_most() -> None:
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, 16, 16] = 255
    prepare = training(transform("light"), Preprocessing(32, 32), 3, "stack")
    torch.manual_seed(0)
    places = np.array([np.argwhere(prepare(image)[0].numpy() == 255)[0] for _ in range(200)])
    assert places.min() == 12
    assert places.max() == 20


def test_grey_is_repeated_and_colour_averaged() -> None:
    grey = Image.new("L", (4, 4), 77)
    assert np.unique(np.asarray(with_channels(grey, 3))).tolist() == [77]
    assert with_channels(picture(4, 4), 1).mode == "L"
    assert with_channels(noise(4, 4, 1), 3).shape == (3, 4, 4)
    assert with_channels(noise(4, 4, 5), 5).shape == (5, 4, 4)


def test_transparent_and_deep_pictures_are_read() -> None:
    assert with_channels(Image.new("RGBA", (4, 4), (10, 20, 30, 40)), 3).getpixel((0, 0)) == (10, 20, 30)
    deep = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))  # half of the 16-bit range
    assert with_channels(deep, 1).getpixel((0, 0)) == 128


def test_float_tensors_are_the_user_s_own_preparation() -> None:
    own = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(evaluation(PHOTO, 3, "stack")(own[0]), own[0].float())
    assert torch.equal(normalizer(PHOTO)(own), own.float())


def test_normalised_pixels_have_the_weights_mean_and_spread() -> None:
    pixels = noise(8, 8)[None]
    made = normalizer(PHOTO)(pixels)
    for channel in range(3):
        expected = (pixels[:, channel].double() / 255 - PHOTO.mean[channel]) / PHOTO.std[channel]
        torch.testing.assert_close(made[:, channel].double(), expected, rtol=0, atol=1e-6)  # float32
    assert made.dtype == torch.float32


def test_grey_pixels_are_normalised_by_the_average() -> None:
    white = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert normalizer(Preprocessing())(white).unique().tolist() == pytest.approx([2.0])


def test_padding_becomes_the_mean_colour() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    made = normalizer(PHOTO)(noise(8, 8)[None], mask)
    assert (made[:, :, 4:] == 0).all()
    assert (made[:, :, :4] != 0).any()


def test_no_mixer_without_alpha() -> None:
    assert mixer(transform("standard"), 4) is None


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_labels_follow_the_mixed_pixels(alphas: dict[str, float]) -> None:
    """An image that is its own label: the share of each colour is the share of its class."""
    mix = mixer(transform("standard", **alphas), 4)
    assert mix is not None
    labels = torch.arange(4).repeat(2)
    inputs = torch.nn.functional.one_hot(labels, 4).float()[:, :, None, None].repeat(1, 1, 16, 16)
    torch.manual_seed(1)
    for _ in range(8):
        mixed, targets = mix(inputs, labels)
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: evaluation(Preprocessing(interpolation="bicubc"), 3, "stack"), "interpolation=bicubc .* did you mean bicubic"),
        (lambda: training(transform("randaugment"), PHOTO, 4, "stack"), "dataset.in_chans=4: choose none, light or standard"),
        (lambda: with_channels(noise(4, 4, 5), 3), "have 5 channels, which stand first: set dataset.in_chans=5"),
        (lambda: with_channels(picture(4, 4), 4), "image files have 1 or 3 channels"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
