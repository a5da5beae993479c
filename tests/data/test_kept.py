"""Kept images are the images, bit for bit; where they are not, the run is another one."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fourfold.activations import Held, Store
from fourfold.config import ConfigError, LoaderConfig
from fourfold.data import Batches, kept, load_splits
from fourfold.data.kept import KeptImages, KeptSquares
from fourfold.data.transforms import Shift, training

from .making import LOADER, Preprocessing, dataset, transform

PHOTO = Preprocessing(size=16, resize=20)
RANDOM_CROPS = ("standard", "randaugment", "trivialaugment")


def photos(root: Path, count: int = 24) -> Path:
    """Two classes of JPEGs of different sizes, large enough to be made smaller."""
    rng = np.random.default_rng(0)
    for i in range(count):
        height, width = rng.integers(24, 60, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = root / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def splits(root: Path, folder: Path, keep: str, augmentation: str = "none", collate: str = "stack", in_chans: int = 3) -> Any:
    config = dataset(
        loader={"collate": collate}, name="photos", source="image_folder", kwargs={}, root=str(root), in_chans=in_chans
    )
    return load_splits(config, transform(augmentation, hflip=True), PHOTO, 0, keep, folder)


def epochs(images: Any, loader: dict[str, Any] | None = None, count: int = 2) -> list[torch.Tensor]:
    given = LoaderConfig(**(vars(LOADER) | (loader or {})))
    batches = Batches(images, batch_size=5, accumulate=1, loader=given, seed=1, shuffle=True)
    return [part for epoch in range(count) for step in batches.at(epoch) for batch in step for part in batch]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("keep", ["auto", "ram", "disk"])
@pytest.mark.parametrize("augmentation", ["none", "light"])
@pytest.mark.parametrize(("collate", "in_chans"), [("stack", 3), ("stack", 1), ("resize", 3)])
def test_kept_images_are_those_decoded_anew(keep: str, augmentation: str, collate: str, in_chans: int, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    anew, made = (splits(root, tmp_path, how, augmentation, collate, in_chans) for how in ("off", keep))
    assert isinstance(made.train, KeptImages)
    assert equal(epochs(anew.train), epochs(made.train))
    assert equal(epochs(anew.val), epochs(made.val))
    assert isinstance(made.train._rows, Held if keep == "ram" else Store)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("augmentation", ["none", "standard"])
def test_workers_share_what_is_kept(augmentation: str, persistent: bool, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    alone, helped = (splits(root, tmp_path / place, "disk", augmentation).train for place in ("one", "other"))
    assert equal(epochs(alone), epochs(helped, {"num_workers": 2, "persistent_workers": persistent}))
    assert isinstance(helped._rows, Store)


@pytest.mark.parametrize("augmentation", RANDOM_CROPS)
def test_random_crops_are_left_alone_unless_asked_for(augmentation: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    anew, auto = (splits(root, tmp_path, how, augmentation).train for how in ("off", "auto"))
    assert not isinstance(auto, KeptImages)
    assert equal(epochs(anew), epochs(auto))


@pytest.mark.parametrize("augmentation", RANDOM_CROPS)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_random_crops_are_the_same_wherever_the_smaller_images_lie(
    augmentation: str, in_chans: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_chans == 1 and augmentation != "standard":
        pytest.skip("grey images take one recipe as well as the other")
    root = photos(tmp_path / "photos")
    ram, disk, nowhere = (splits(root, tmp_path, how, augmentation, in_chans=in_chans).train for how in ("ram", "disk", "disk"))
    first = epochs(ram)
    assert isinstance(ram._rows, Held)
    assert equal(first, epochs(disk))
    assert isinstance(disk._rows, Store)
    monkeypatch.setattr(KeptImages, "_rooms", lambda self, count: iter(()))
    assert equal(first, epochs(nowhere))
    assert nowhere._rows is None
    assert not equal(first, epochs(splits(root, tmp_path, "off", augmentation, in_chans=in_chans).train))


def test_images_kept_for_random_crops_show_the_whole_image_unless_it_is_very_long() -> None:
    smaller = training(transform("standard"), PHOTO, 3, "stack", resized=True)
    shapes = {}
    for size in ((60, 40), (40, 60), (12, 14), (300, 40), (18, 18)):
        shapes[size] = smaller.fixed(Image.new("RGB", size)).size
    assert shapes == {(60, 40): (27, 18), (40, 60): (18, 27), (12, 14): (12, 14), (300, 40): (36, 18), (18, 18): (18, 18)}


def test_an_image_is_decoded_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos")
    opened: list[Any] = []
    decode = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or decode(path))
    first = splits(root, tmp_path, "disk").train
    epochs(first)
    assert len(opened) == len(first)
    again = splits(root, tmp_path, "disk").train
    epochs(again)
    assert len(opened) - len(first) == 4  # some are looked at again, whether they are still the same


def test_only_what_is_asked_for_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a few steps does not wait for the whole data set."""
    root = photos(tmp_path / "photos")
    opened: list[Any] = []
    decode = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or decode(path))
    images = splits(root, tmp_path, "disk").train
    assert not opened
    batches = Batches(images, batch_size=5, accumulate=1, loader=LOADER, seed=1, shuffle=True)
    list(batches.at(0, stop_step=1))
    assert len(opened) == 5


def test_changed_files_are_other_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    before = epochs(splits(root, tmp_path, "disk").train)
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            turned = image.transpose(Image.Transpose.ROTATE_180)
        turned.save(path, quality=91)
        os.utime(path, (time.time() + 5,) * 2)
    after = epochs(splits(root, tmp_path, "disk").train)
    assert equal(after, epochs(splits(root, tmp_path, "off").train))
    assert not equal(before, after)


def test_a_folder_that_cannot_be_written_costs_speed_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = photos(tmp_path / "photos")
    (tmp_path / "file").write_text("no folder")
    images = splits(root, tmp_path / "file", "auto").train
    assert equal(epochs(images), epochs(splits(root, tmp_path, "off").train))
    assert isinstance(images._rows, Held)
    assert "not kept on disk" in caplog.text


def test_a_full_disk_costs_speed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 0

    root = photos(tmp_path / "photos")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    images = splits(root, tmp_path, "disk").train
    assert equal(epochs(images), epochs(splits(root, tmp_path, "off").train))
    assert isinstance(images._rows, Held)
    assert not list(tmp_path.rglob("index.npy"))


def test_auto_keeps_what_fits_into_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos")
    monkeypatch.setattr(kept, "_memory", lambda: 4000)
    images = splits(root, tmp_path, "auto").train
    assert equal(epochs(images), epochs(splits(root, tmp_path, "off").train))
    assert images._rows is None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_told_as_without_keeping(workers: int, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 90)
    next(root.rglob("*.jpg")).write_bytes(b"no image")
    everywhere = splits(root, tmp_path, "disk")

    def read_all() -> None:
        for part in (everywhere.train, everywhere.val, everywhere.test.open()):
            epochs(part, {"num_workers": workers}, count=1)

    with pytest.raises(ConfigError, match=r"cannot be read .*: replace it or remove it from the dataset"):
        read_all()


def _dies(root: Path, folder: Path) -> None:
    images = splits(root, folder, "disk").train
    row, seen = KeptImages.row, []

    def last(self: KeptImages, index: int) -> Any:
        seen.append(index)
        if len(seen) == 50:
            os._exit(9)
        return row(self, index)

    KeptImages.row = last  # type: ignore[method-assign]
    epochs(images)


def test_a_kill_while_decoding_leaves_nothing_that_anyone_believes(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 90)
    dying = multiprocessing.get_context("fork").Process(target=_dies, args=(root, tmp_path))
    dying.start()
    dying.join(120)
    assert dying.exitcode == 9
    assert equal(epochs(splits(root, tmp_path, "disk").train), epochs(splits(root, tmp_path, "off").train))


def test_collate_pad_and_images_in_memory_are_not_kept(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    assert not isinstance(splits(root, tmp_path, "disk", collate="pad").train, KeptImages)
    generated = load_splits(dataset(), transform("none"), PHOTO, 0, "disk", tmp_path)
    assert not isinstance(generated.train, KeptImages)


def test_whole_batches_are_given_where_nothing_is_random(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    made = splits(root, tmp_path, "auto", "light")
    assert isinstance(made.val, KeptSquares)
    assert not isinstance(made.train, KeptSquares)
    assert made.val.take([0, 2, 1], 0)[0].shape == (3, 3, 16, 16)  # before anything is kept


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("size", [7, 16, 33])
def test_a_shift_is_torchvision_s_crop_and_flip(hflip: bool, size: int) -> None:
    noise = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs: list[v2.Transform] = [v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")]
    if hflip:
        theirs.append(v2.RandomHorizontalFlip())
    made = []
    for step in (Shift(size, size // 8, hflip), v2.Compose(theirs)):
        torch.manual_seed(3)
        made.append([step(noise) for _ in range(30)])
    assert equal(*made)
