"""Datasets of the Hugging Face Hub: the optional package is imported when one is asked for."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourfold.config import ConfigError, DatasetConfig
from fourfold.data import load_splits
from fourfold.data.sources import open_source

from .making import Preprocessing, dataset, transform, write_image

KWARGS = {
    "path": "owner/name",
    "config": None,
    "revision": None,
    "train": "train",
    "val": None,
    "test": "test",
    "image": None,
    "label": None,
}


class Features(dict):
    pass


class ClassLabel:
    names = ("cat", "dog")


class Value:
    pass


FeatureImage = type("Image", (), {})


class Rows:
    """One split: columns by name, rows by number; a row decodes its image."""

    def __init__(self, labels: list[Any], feature: Any) -> None:
        self.labels, self.decoded = labels, 0
        self.features = Features(number=Value(), picture=FeatureImage(), kind=feature)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            assert key == "kind"
            return self.labels
        self.decoded += 1
        return {"picture": Image.new("RGB", (9, 9), (key, key, key)), "kind": self.labels[key]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The package with one dataset; what it was asked for is kept under `asked`."""
    made: dict[str, Any] = {"train": Rows([0, 1] * 10, ClassLabel()), "test": Rows([1, 0, 1], ClassLabel())}
    asked: dict[str, Any] = {}
    module = ModuleType("datasets")

    def load_dataset(path: str, name: str | None, **kwargs: Any) -> dict[str, Any]:
        if path != "owner/name":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nmore lines")
        asked.update(kwargs, name=name)
        return made

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return made | {"asked": asked, "made": made}


def config(root: Path, **changes: Any) -> DatasetConfig:
    return dataset(name="huggingface", source="huggingface", kwargs=KWARGS | changes, root=str(root))


def test_columns_are_found_and_nothing_is_decoded_before_it_is_needed(hub: dict[str, Any], tmp_path: Path) -> None:
    splits = load_splits(config(tmp_path), transform("none"), Preprocessing(), seed=0)
    assert splits.classes == ("cat", "dog")
    assert splits.class_counts == (8, 8)
    assert len(splits.test) == 3
    assert hub["train"].decoded == 0
    pixels, label = splits.train[2]
    place = int(splits.manifest.train[2])
    assert (pixels.unique().item(), label.item()) == (place, place % 2)
    assert hub["asked"] == {"name": None, "revision": None, "cache_dir": str(tmp_path / "huggingface")}


def test_a_label_column_without_names_is_numbered_in_order(hub: dict[str, Any], tmp_path: Path) -> None:
    hub["made"]["train"] = Rows([30, 7] * 5, Value())
    hub["made"]["test"] = Rows([7], Value())
    source = open_source(config(tmp_path, label="kind"), 0)
    assert source.classes == ("7", "30")
    assert source.train.labels.tolist() == [1, 0] * 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": None}, "dataset.kwargs.path=null"),
        (
            {"path": "owner/nothing"},
            r"path=owner/nothing cannot be loaded \(Dataset 'owner/nothing' doesn't exist.*\)",
        ),
        ({"val": "validation"}, "val=validation is not a split of owner/name, which has train, test: choose one or null"),
        ({"label": "sort"}, "label=sort is not a column of owner/name: choose from number, picture, kind"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        open_source(config(tmp_path, **changes), 0)


def test_without_the_package_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets: pip install 'fourfold\[hf\]'"):
        open_source(config(tmp_path), 0)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")
def test_the_real_package_reads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 10), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / "pets" / split / name / f"{i}.png", 100 * number + i)
    splits = load_splits(config(tmp_path / "cache", path=str(tmp_path / "pets")), transform("none"), Preprocessing(), seed=0)
    assert splits.classes == ("cat", "dog")
    assert (splits.class_counts, len(splits.test)) == ((8, 8), 4)
    greys = np.array([int(pixels[0, 0, 0]) for pixels, _ in splits.train])  # type: ignore[attr-defined]
    assert ((greys >= 100) == splits.train.labels.numpy().astype(bool)).all()  # type: ignore[attr-defined]
