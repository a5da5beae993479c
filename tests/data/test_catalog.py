"""Torchvision's datasets, each read from tiny files in its own real format that the tests write."""

import csv
import importlib.util
import inspect
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from torchvision import datasets
from torchvision.datasets import cifar, flowers102, stl10, svhn

from fourfold.config import ConfigError, DatasetConfig
from fourfold.data import load_splits
from fourfold.data.catalog import RECIPES
from fourfold.data.pools import FirstOf, Pool, Source
from fourfold.data.sources import open_source

from .making import Preprocessing, dataset, transform, write_image

RNG = np.random.default_rng(0)
CONF = Path(__file__).parents[2] / "conf" / "dataset"


def config(name: str, root: Path, **changes: Any) -> DatasetConfig:
    given = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return dataset(name=name, source=given["source"], kwargs=given.get("kwargs", {}), root=str(root), **changes)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# one writer per format: it leaves files for 2 training images of each of the first two classes, and 1 for val and for test


def write_cifar(root: Path, folder: str, files: dict[str, int], key: str, meta: str, names: str) -> None:
    (root / folder).mkdir()
    for name, count in files.items():
        content = {"data": pixels(count, 3072), key: [i % 2 for i in range(count)]}
        (root / folder / name).write_bytes(pickle.dumps(content))
    (root / folder / meta).write_bytes(pickle.dumps({names: [f"name {i}" for i in range(10)]}))


def write_cifar10(root: Path) -> None:
    files = {f"data_batch_{i}": 2 for i in range(1, 6)} | {"test_batch": 2}
    write_cifar(root, "cifar-10-batches-py", files, "labels", "batches.meta", "label_names")


def write_cifar100(root: Path) -> None:
    write_cifar(root, "cifar-100-python", {"train": 4, "test": 2}, "fine_labels", "meta", "fine_label_names")


def write_idx(path: Path, array: np.ndarray) -> None:
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def mnist_writer(folder: str, prefix: dict[str, str], first: int = 0) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for split, count in (("train", 4), ("test", 2)):
            start = root / folder / "raw" / prefix[split]
            write_idx(start.with_name(start.name + "-images-idx3-ubyte"), pixels(count, 28, 28))
            labels = np.arange(count, dtype=np.uint8) % 2 + first
            write_idx(start.with_name(start.name + "-labels-idx1-ubyte"), labels)

    return write


def write_qmnist(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        labels = np.zeros((count, 8), dtype=np.int32)
        labels[:, 0] = np.arange(count) % 2
        labels[:, 1:] = 99  # who wrote it, and so on
        write_idx(root / "QMNIST" / "raw" / f"qmnist-{split}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(root / "QMNIST" / "raw" / f"qmnist-{split}-labels-idx2-int", labels)


def write_svhn(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        labels = np.where(np.arange(count) % 2, 1, 10)[:, None].astype(np.uint8)  # 10 is the digit 0
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, count), "y": labels})


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        pixels(count, 3, 96, 96).tofile(folder / f"{split}_X.bin")
        (np.arange(count, dtype=np.uint8) % 2 + 1).tofile(folder / f"{split}_y.bin")
    (folder / "unlabeled_X.bin").touch()
    write_text(folder / "class_names.txt", "\n".join(f"name {i}" for i in range(10)) + "\n")


def write_flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    for i in range(1, 9):
        write_image(folder / "jpg" / f"image_{i:05d}.jpg", 20 * i)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2] * 4])})
    splits = {"trnid": np.array([[1, 2, 3, 4]]), "valid": np.array([[5, 6]]), "tstid": np.array([[7, 8]])}
    scipy.io.savemat(folder / "setid.mat", splits)


def write_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for split, count in (("trainval", 2), ("test", 1)):
        lines = []
        for breed, (name, species) in enumerate((("Abyssinian", 1), ("american_bulldog", 2)), start=1):
            for i in range(count):
                write_image(folder / "images" / f"{name}_{split}{i}.jpg")
                lines.append(f"{name}_{split}{i} {breed} {species} 1")
        write_text(folder / "annotations" / f"{split}.txt", "\n".join(lines) + "\n")


def write_dtd(root: Path) -> None:
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        names = [f"{name}/{name}_{split}{i}.jpg" for name in ("banded", "woven") for i in range(count)]
        for name in names:
            write_image(root / "dtd" / "dtd" / "images" / name)
        write_text(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", "\n".join(names) + "\n")


def write_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write_text(data / "variants.txt", "707-320\nDHC-8-100\n")
    for split, count in (("train", 2), ("val", 1), ("trainval", 2), ("test", 1)):
        lines = [f"{split}{c}{i} {name}" for c, name in enumerate(("707-320", "DHC-8-100")) for i in range(count)]
        for line in lines:
            write_image(data / "images" / f"{line.split()[0]}.jpg")
        write_text(data / f"images_variant_{split}.txt", "\n".join(lines) + "\n")


def write_food101(root: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        names = {name: [f"{name}/{split}{i}" for i in range(count)] for name in ("waffles", "apple_pie")}
        for name in (name for of_class in names.values() for name in of_class):
            write_image(root / "food-101" / "images" / f"{name}.jpg")
        write_text(root / "food-101" / "meta" / f"{split}.json", json.dumps(names))


def write_eurosat(root: Path, count: int = 4) -> None:
    for name in ("AnnualCrop", "Forest"):
        for i in range(count):
            write_image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg")


def write_caltech101(root: Path) -> None:
    for name in ("accordion", "wrench", "BACKGROUND_Google"):
        for i in range(1, 5):
            write_image(root / "caltech101" / "101_ObjectCategories" / name / f"image_{i:04d}.jpg", mode="L")


def write_gtsrb(root: Path) -> None:
    folder = root / "gtsrb"
    rows = []
    for label in (0, 1):
        for i in range(2):
            write_image(folder / "GTSRB" / "Training" / f"{label:05d}" / f"0000{i}.ppm")
        write_image(folder / "GTSRB" / "Final_Test" / "Images" / f"0000{label}.ppm")
        rows.append({"Filename": f"0000{label}.ppm", "ClassId": label})
    with (folder / "GT-final_test.csv").open("w") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def write_pcam(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir()
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        start = root / "pcam" / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{start}_x.h5", "w") as file:
            file["x"] = pixels(count, 96, 96, 3)
        with h5py.File(f"{start}_y.h5", "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)


def write_sun397(root: Path) -> None:
    write_text(root / "SUN397" / "ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    for place in ("a/abbey", "b/bar/indoor"):
        for i in range(4):
            write_image(root / "SUN397" / place / f"sun_{i}.jpg", 20 * i)


def write_imagenette(root: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for name in ("n01440764", "n02102040"):
            for i in range(count):
                write_image(root / "imagenette2-160" / split / name / f"{i}.jpg").rename(
                    root / "imagenette2-160" / split / name / f"{i}.JPEG"
                )


MNIST_FILES = {"train": "train", "test": "t10k"}
WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "mnist": mnist_writer("MNIST", MNIST_FILES),
    "fashion_mnist": mnist_writer("FashionMNIST", MNIST_FILES),
    "kmnist": mnist_writer("KMNIST", MNIST_FILES),
    "emnist": mnist_writer("EMNIST", {"train": "emnist-balanced-train", "test": "emnist-balanced-test"}),
    "qmnist": write_qmnist,
    "svhn": write_svhn,
    "stl10": write_stl10,
    "flowers102": write_flowers102,
    "oxford_pets": write_pets,
    "dtd": write_dtd,
    "fgvc_aircraft": write_aircraft,
    "fgvc_aircraft_trainval": write_aircraft,
    "food101": write_food101,
    "eurosat": write_eurosat,
    "caltech101": write_caltech101,
    "gtsrb": write_gtsrb,
    "pcam": write_pcam,
    "sun397": write_sun397,
    "imagenette": write_imagenette,
}
UNSPLIT = ("eurosat", "caltech101", "sun397")
WITH_VAL = ("flowers102", "dtd", "fgvc_aircraft", "pcam")
needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs the package h5py")
NAMES = [pytest.param(name, marks=needs_h5py) if name == "pcam" else name for name in RECIPES]


@pytest.fixture(autouse=True)
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the real files."""
    for module in (cifar, flowers102, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


def pools(source: Source) -> list[Pool]:
    return [pool for pool in (source.train, source.val, source.test) if pool is not None]


@pytest.mark.parametrize("name", NAMES)
def test_labels_read_without_decoding_are_those_of_the_dataset_s_own_items(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    given = config(name, tmp_path)
    source = open_source(given, 0)
    assert (source.test is None, source.val is not None) == (name in UNSPLIT, name in WITH_VAL)
    recipe = RECIPES[name]
    for pool, arguments in zip(
        pools(source), [a for a in (recipe.train, recipe.val, recipe.test) if a is not None], strict=True
    ):
        theirs = getattr(datasets, recipe.builder)(root=tmp_path, download=False, **arguments, **given.kwargs)
        order = pool.images.order if isinstance(pool.images, FirstOf) else None
        for i in range(len(pool.labels)):
            image, label = theirs[i if order is None else order[i]]
            assert pool.labels[i] == label
            ours = pool.images[i]
            if isinstance(ours, torch.Tensor):
                ours = ours[0] if len(ours) == 1 else ours.permute(1, 2, 0)
            assert np.array_equal(np.asarray(ours), np.asarray(image))


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_reaches_the_model(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    splits = load_splits(config(name, tmp_path, val_size=2, test_fraction=0.25), transform("standard"), Preprocessing(), 0)
    image, label = splits.train[0]
    assert (image.shape, image.dtype, label.dtype) == ((3, 16, 16), torch.uint8, torch.int64)
    assert len(splits.classes) == splits.num_outputs >= 2


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_speaks_the_language_of_the_real_class(name: str) -> None:
    recipe = RECIPES[name]
    parameters = inspect.signature(getattr(datasets, recipe.builder)).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    kwargs = yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("kwargs", {})
    given = {"root", "download", *kwargs, *(key for part in (recipe.train, recipe.val, recipe.test) for key in part or ())}
    assert free or given <= set(parameters)


def test_every_option_has_a_recipe_and_every_recipe_an_option() -> None:
    options = {path.stem for path in CONF.glob("*.yaml") if "source: torchvision" in path.read_text()}
    assert options == set(RECIPES) == set(WRITERS)


def test_letters_count_from_zero(tmp_path: Path) -> None:
    files = {"train": "emnist-letters-train", "test": "emnist-letters-test"}
    mnist_writer("EMNIST", files, first=1)(tmp_path)
    given = dataset(name="emnist", source="torchvision", kwargs={"split": "letters"}, root=str(tmp_path))
    source = open_source(given, 0)
    assert len(source.classes) == 26
    assert [source.classes[label] for label in source.train.labels] == ["a", "b", "a", "b"]


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sun397(tmp_path)
    kept = Path.rglob
    greys = []
    for turned in (False, True):
        monkeypatch.setattr(Path, "rglob", lambda *a, t=turned, **k: sorted(kept(*a, **k), reverse=t))
        pool = open_source(config("sun397", tmp_path), 0).train
        greys.append([int(np.asarray(pool.images[i]).mean()) for i in range(8)])
        for other in "ab":  # so that it is read anew
            open_source(dataset(root=other), 0)
    assert greys[0] == greys[1]


@pytest.mark.parametrize(
    ("name", "kwargs", "says"),
    [
        ("fgvc_aircraft", {"annotation_level": "variants"}, "does not fit FGVCAircraft .*variants"),
        ("dtd", {"partitoin": 1}, r"dataset.kwargs.partitoin is not taken by dataset=dtd, did you mean partition\?"),
        ("cifar10", {"train": False}, "dataset.kwargs.train is not taken by dataset=cifar10"),
        ("flowers102", {}, r"flowers102 is not whole in dataset.root=.*flowers-102, or dataset.download=true"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, kwargs: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        open_source(dataset(name=name, source="torchvision", kwargs=kwargs, root=str(tmp_path)), 0)


def test_a_missing_package_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dataset=pcam needs the package h5py: pip install h5py$"):
        open_source(config("pcam", tmp_path), 0)
    with pytest.raises(ConfigError, match=r"needs the package h5py and gdown: pip install h5py gdown$"):
        open_source(config("pcam", tmp_path, download=True), 0)


def test_no_network_is_one_sentence_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.EuroSAT, "download", offline)
    with pytest.raises(ConfigError, match=r"eurosat could not be downloaded .*no route.* dataset.root=FOLDER .*download=false"):
        open_source(config("eurosat", tmp_path, download=True), 0)


def test_a_download_cut_short_is_not_taken_for_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(self: Any) -> None:
        asked.append(self.root)
        write_eurosat(Path(self.root), count=1 if len(asked) == 1 else 4)
        if len(asked) == 1:
            raise URLError("the plug was pulled")

    monkeypatch.setattr(datasets.EuroSAT, "download", download)
    given = config("eurosat", tmp_path, download=True)
    with pytest.raises(ConfigError, match="plug was pulled"):
        open_source(given, 0)
    assert len(open_source(given, 0).train.labels) == 8
    assert len(asked) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"eurosat", ".eurosat.lock"}


def test_a_download_joins_what_is_already_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gtsrb(tmp_path / "mirror")
    (tmp_path / "mirror" / "gtsrb" / "GT-final_test.csv").rename(tmp_path / "kept.csv")
    (tmp_path / "gtsrb").mkdir()
    write_text(tmp_path / "gtsrb" / "notes.txt", "mine")

    def download(self: Any) -> None:
        write_gtsrb(Path(self.root))

    monkeypatch.setattr(datasets.GTSRB, "download", download)
    assert len(open_source(config("gtsrb", tmp_path, download=True), 0).train.labels) == 4
    assert (tmp_path / "gtsrb" / "notes.txt").read_text() == "mine"
