"""Torchvision's datasets, described as data: how each is built, how its splits are asked for, where its labels lie."""

import importlib.util
import inspect
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from fourfold.config import ConfigError, nearest
from fourfold.data.pools import FirstOf, Pool, Source, class_labels
from fourfold.files import lock

RESERVED = ("root", "download", "transform", "target_transform", "transforms", "loader")  # not for YAML


@dataclass(frozen=True)
class Recipe:
    """One dataset of torchvision. Reading a label or a class name decodes no image."""

    builder: str  # class in torchvision.datasets
    folder: str  # what lies in dataset.root when it is there
    labels: Callable[[Any], Any]  # dataset -> class numbers
    classes: Callable[[Any], Any] = attrgetter("classes")  # dataset -> names
    train: Mapping[str, Any] = field(default_factory=dict)  # arguments that ask for a split
    val: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    array: Callable[[Any], Any] | None = None  # dataset -> uint8 [N, C, H, W], where it holds all images in memory
    sort_by: Callable[[Any], Any] | None = None  # dataset -> keys, where its order is the file system's
    needs: tuple[str, ...] = ()  # packages beyond ours
    needs_to_download: tuple[str, ...] = ()


def _numbered(count: int) -> Callable[[Any], Any]:
    return lambda dataset: [str(i) for i in range(count)]


def _of_samples(dataset: Any) -> list[int]:
    return [label for _, label in dataset._samples]


def _pcam_labels(dataset: Any) -> np.ndarray:
    name = dataset._FILES[dataset._split]["targets"][0]
    with dataset.h5py.File(dataset._base_folder / name) as file:
        return file["y"][:, 0, 0, 0]


def _emnist_labels(dataset: Any) -> Tensor:
    return dataset.targets - 1 if dataset.split == "letters" else dataset.targets  # letters count from 1


def _emnist_classes(dataset: Any) -> list[str]:
    return [name for name in dataset.classes if name != "N/A"]


def _last_axis_channels(dataset: Any) -> Tensor:
    return torch.as_tensor(dataset.data).permute(0, 3, 1, 2).contiguous()


def _no_channels(dataset: Any) -> Tensor:
    return dataset.data[:, None]


def _own_array(dataset: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(dataset.data))


TRAIN, TEST = {"train": True}, {"train": False}
_TRAIN, _VAL, _TEST = {"split": "train"}, {"split": "val"}, {"split": "test"}
_TARGETS, _LABELS, _HIDDEN = attrgetter("targets"), attrgetter("labels"), attrgetter("_labels")

RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe("CIFAR10", "cifar-10-batches-py", _TARGETS, train=TRAIN, test=TEST, array=_last_axis_channels),
    "cifar100": Recipe("CIFAR100", "cifar-100-python", _TARGETS, train=TRAIN, test=TEST, array=_last_axis_channels),
    "mnist": Recipe("MNIST", "MNIST", _TARGETS, train=TRAIN, test=TEST, array=_no_channels),
    "fashion_mnist": Recipe("FashionMNIST", "FashionMNIST", _TARGETS, train=TRAIN, test=TEST, array=_no_channels),
    "kmnist": Recipe("KMNIST", "KMNIST", _TARGETS, train=TRAIN, test=TEST, array=_no_channels),
    "emnist": Recipe("EMNIST", "EMNIST", _emnist_labels, _emnist_classes, train=TRAIN, test=TEST, array=_no_channels),
    "qmnist": Recipe("QMNIST", "QMNIST", lambda d: d.targets[:, 0], train=TRAIN, test=TEST, array=_no_channels),
    "svhn": Recipe("SVHN", "train_32x32.mat", _LABELS, _numbered(10), train=_TRAIN, test=_TEST, array=_own_array),
    "stl10": Recipe("STL10", "stl10_binary", _LABELS, train=_TRAIN, test=_TEST, array=_own_array),
    "flowers102": Recipe("Flowers102", "flowers-102", _HIDDEN, train=_TRAIN, val=_VAL, test=_TEST),
    "oxford_pets": Recipe("OxfordIIITPet", "oxford-iiit-pet", _HIDDEN, train={"split": "trainval"}, test=_TEST),
    "dtd": Recipe("DTD", "dtd", _HIDDEN, train=_TRAIN, val=_VAL, test=_TEST),
    "fgvc_aircraft": Recipe("FGVCAircraft", "fgvc-aircraft-2013b", _HIDDEN, train=_TRAIN, val=_VAL, test=_TEST),
    "fgvc_aircraft_trainval": Recipe("FGVCAircraft", "fgvc-aircraft-2013b", _HIDDEN, train={"split": "trainval"}, test=_TEST),
    "food101": Recipe("Food101", "food-101", _HIDDEN, train=_TRAIN, test=_TEST),
    "eurosat": Recipe("EuroSAT", "eurosat", _TARGETS),
    "caltech101": Recipe("Caltech101", "caltech101", attrgetter("y"), attrgetter("categories")),
    "gtsrb": Recipe("GTSRB", "gtsrb", _of_samples, _numbered(43), train=_TRAIN, test=_TEST),
    "pcam": Recipe(
        "PCAM",
        "pcam",
        _pcam_labels,
        lambda d: ["no tumour", "tumour"],
        train=_TRAIN,
        val=_VAL,
        test=_TEST,
        needs=("h5py",),
        needs_to_download=("gdown",),
    ),
    "sun397": Recipe("SUN397", "SUN397", _HIDDEN, sort_by=attrgetter("_image_files")),
    "imagenette": Recipe(  # its val is what everybody reports: our test
        "Imagenette",
        "imagenette2-160, imagenette2-320 or imagenette2",
        _of_samples,
        lambda d: [names[0] for names in d.classes],
        train=_TRAIN,
        test=_VAL,
    ),
}


def open_torchvision(name: str, kwargs: dict[str, Any], root: Path, *, download: bool) -> Source:
    """Build a dataset of `RECIPES`, downloading it first if it is not in `root` and `download` allows it.

    Raises:
        ConfigError: for an unknown name, a missing package, wrong kwargs, or a dataset that is not there and cannot be fetched.
    """
    if name not in RECIPES:
        raise ConfigError(f"dataset.name={name} is not one of {', '.join(RECIPES)}{nearest(name, RECIPES)}")
    recipe = RECIPES[name]
    absent = download and not (root / recipe.folder).exists()
    _require(name, recipe.needs + (recipe.needs_to_download if absent else ()))
    builder = getattr(datasets, recipe.builder)
    _check_kwargs(name, builder, recipe, kwargs)
    try:
        built = _build(recipe, builder, root, kwargs, download=False)
    except (RuntimeError, FileNotFoundError) as missing:
        if not download:
            raise ConfigError(
                f"dataset={name} is not whole in dataset.root={root} ({_one_line(missing)}): give the folder that holds "
                f"{recipe.folder}, or dataset.download=true"
            ) from missing
        _require(name, recipe.needs_to_download)
        _download(name, recipe, builder, root, kwargs)
        built = _build(recipe, builder, root, kwargs, download=False)
    pools = {split: _pool(recipe, dataset, f"{split} of {name}") for split, dataset in built.items()}
    classes = tuple(map(str, recipe.classes(built["train"])))
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _build(recipe: Recipe, builder: Any, root: Path, kwargs: dict[str, Any], *, download: bool) -> dict[str, Any]:
    splits = {"train": recipe.train, "val": recipe.val, "test": recipe.test}
    try:
        return {
            split: builder(root=str(root), download=download, **given, **kwargs)
            for split, given in splits.items()
            if given is not None
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dataset.kwargs={kwargs} does not fit {recipe.builder} ({_one_line(error)}): correct it") from error


def _pool(recipe: Recipe, dataset: Any, name: str) -> Pool:
    labels = class_labels(recipe.labels(dataset))
    if recipe.array is not None:
        return Pool(torch.as_tensor(recipe.array(dataset)), labels)
    if recipe.sort_by is None:
        return Pool(FirstOf(dataset, name=name), labels)
    keys = recipe.sort_by(dataset)
    order = np.array(sorted(range(len(keys)), key=lambda i: keys[i]))
    return Pool(FirstOf(dataset, order, name), labels[order])


def _download(name: str, recipe: Recipe, builder: Any, root: Path, kwargs: dict[str, Any]) -> None:
    """Fetch into a folder aside, and move it into place when it is whole: many of torchvision's datasets take a folder that
    exists for a complete one, so a download cut short would be trained on. One process at a time."""
    incoming = root / f".incoming-{name}"
    with lock(root / f".{name}.lock"):
        try:
            _build(recipe, builder, root, kwargs, download=False)
            return  # another process fetched it meanwhile
        except (RuntimeError, FileNotFoundError):
            shutil.rmtree(incoming, ignore_errors=True)
            incoming.mkdir(parents=True)
        try:
            _build(recipe, builder, incoming, kwargs, download=True)
        except (RuntimeError, OSError) as error:  # URLError is an OSError
            raise ConfigError(
                f"dataset={name} could not be downloaded ({_one_line(error)}): try again with a network, or fetch it elsewhere "
                f"and give dataset.root=FOLDER (it holds {recipe.folder}) with dataset.download=false"
            ) from error
        _move_into(incoming, root)


def _move_into(source: Path, target: Path) -> None:
    """Move all that `source` holds, over what is already there."""
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir() and place.is_dir():
            _move_into(path, place)
        else:
            path.replace(place)
    source.rmdir()


def _require(name: str, packages: tuple[str, ...]) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(f"dataset={name} needs the package {' and '.join(missing)}: pip install {' '.join(missing)}")


def _check_kwargs(name: str, builder: Any, recipe: Recipe, kwargs: dict[str, Any]) -> None:
    ours = {*RESERVED, *recipe.train}
    if recipe.builder == "EMNIST":
        takes = ["split"]
    else:
        takes = [key for key in inspect.signature(builder).parameters if key not in ours and key != "kwargs"]
    for key in kwargs:
        if key not in takes:
            raise ConfigError(
                f"dataset.kwargs.{key} is not taken by dataset={name}{nearest(key, takes)}: "
                f"choose from {', '.join(takes) or 'none'}"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
