"""Image files that hold the same bytes: found wherever they lie, and never on both sides of a cut."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from fourfold.config import ConfigError
from fourfold.data import load_splits, load_unlabelled
from fourfold.data.copies import END, copies
from fourfold.data.folders import folder_of_images
from fourfold.data.pools import Pool

from .making import Preprocessing, dataset, source, transform, write_image
from .test_sources import folder


def everywhere(pool: Pool) -> np.ndarray:
    return np.arange(len(pool.labels))


def found(ours: Path, theirs: Path) -> dict[str, str]:
    pool, of = folder_of_images(ours), folder_of_images(theirs)
    return {
        pool.images.paths[place].name: of.images.paths[other].name  # type: ignore[union-attr]
        for place, other in copies(pool, everywhere(pool), of, everywhere(of)).items()
    }


def test_copies_are_files_of_the_same_bytes(tmp_path: Path) -> None:
    long = bytes(range(256)) * (END // 128)
    for place, name, content in (
        ("train", "a", long + b"1"),
        ("train", "a_too", long + b"1"),
        ("train", "b", b"1" + long[1:] + b"2"),
        ("train", "c", b""),
        ("test", "same", long + b"1"),
        ("test", "other_beginning", b"2" + long[1:] + b"2"),
        ("test", "other_end", long + b"3"),
        ("test", "longer", long + b"11"),
        ("test", "empty", b""),
    ):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / f"{name}.png").write_bytes(content)
    assert found(tmp_path / "test", tmp_path / "train") == {"same.png": "a.png", "empty.png": "c.png"}


def test_images_that_are_no_files_are_not_compared() -> None:
    train = source(4, 4).train
    assert copies(train, everywhere(train), train, everywhere(train)) == {}


def photos(root: Path, *splits: str) -> None:
    for split in splits:
        for i in range(10):
            for name in ("cat", "dog"):
                write_image(root / split / name / f"{i}.png")


def test_what_we_cut_leaves_no_copy_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path, "")
    for path in sorted(tmp_path.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    config = folder(tmp_path)
    splits = load_splits(config, transform("none"), Preprocessing(), seed=0)
    manifest, paths = splits.manifest, splits.train.images.paths  # type: ignore[attr-defined]
    held_out = [paths[i].read_bytes() for i in [*manifest.val, *manifest.test]]
    left = [paths[i].read_bytes() for i in manifest.train]
    assert not {*held_out} & {*left}
    assert manifest.copies == {"val": {}, "test": {}}
    lost = 40 - len(held_out) - len(left)
    assert 0 < lost <= len(held_out)
    assert "images are left out of training, since they are copies of test images" in caplog.text
    unlabelled = load_unlabelled(
        dataset(name="image_folder", source="image_folder", kwargs={}, root=str(tmp_path), shots=2),
        None, Preprocessing(), 0, manifest,
    )  # fmt: skip
    seen = [paths[i].read_bytes() for i in unlabelled.indices]  # type: ignore[attr-defined]
    assert seen
    assert not {*seen} & {paths[i].read_bytes() for i in manifest.test}


def test_a_class_of_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    photos(tmp_path, "")
    for path in sorted((tmp_path / "dog").iterdir()):
        shutil.copy(tmp_path / "dog" / "0.png", path) if path.name != "0.png" else None
    with pytest.raises(ConfigError, match="class dog has 10 training images, all copies of each other or of test images: add"):
        load_splits(folder(tmp_path), transform("none"), Preprocessing(), seed=0)


def test_splits_of_their_own_are_kept_and_their_copies_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos(tmp_path, "train", "test")
    shutil.copy(tmp_path / "train" / "cat" / "3.png", tmp_path / "test" / "dog" / "7.png")
    with caplog.at_level(logging.WARNING):
        splits = load_splits(
            dataset(name="image_folder", source="image_folder", kwargs={}, root=str(tmp_path), val_size=2),
            transform("none"), Preprocessing(), seed=0,
        )  # fmt: skip
    manifest = splits.manifest
    trained = manifest.train.tolist()
    assert (len(trained), len(manifest.test)) == (18, 20)
    assert manifest.copies == ({"val": {}, "test": {17: 3}} if 3 in trained else {"val": {}, "test": {}})
    assert 3 in trained
    assert manifest.to_json()["copies"] == {"val": [], "test": [(17, 3)]}
    assert "1 of 20 test images are copies of training images" in caplog.text
    assert "test/dog/7.png is " in caplog.text
