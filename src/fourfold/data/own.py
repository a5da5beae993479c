"""The user's own data: a folder of images, a table, or a function of theirs."""

import csv
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from fourfold.config import ConfigError, nearest
from fourfold.data import randomness
from fourfold.data.pools import Files, FirstOf, Pool, Source, class_labels
from fourfold.target import resolve

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # theirs -> ours
LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")  # where torchvision's datasets and their imitators keep them


def image_folder(root: Path) -> Source:
    """One folder per class, directly in `root` or in `root/train`, and then `root/val` and `root/test` where there are such.

    Images lie anywhere below their class's folder; hidden folders and other files are passed over.

    Raises:
        ConfigError: if the folder does not exist or does not look like this.
    """
    if not root.is_dir():
        raise ConfigError(f"dataset.root={root} is not a folder: give the folder that holds one folder of images per class")
    folders = {SPLIT_NAMES[path.name]: path for path in _folders(root) if path.name in SPLIT_NAMES}
    if folders and "train" not in folders:
        names = " and ".join(f"{path.name}/" for path in folders.values())
        raise ConfigError(f"dataset.root={root} has {names} but no train/: add it, or give the folder of the classes")
    folders = folders or {"train": root}
    classes = tuple(path.name for path in _folders(folders["train"]))
    if not classes:
        raise ConfigError(f"{folders['train']} holds no folders: put the images of each class into a folder of its name")
    pools = {split: _folder_pool(folder, classes, split) for split, folder in folders.items()}
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def folder_of_images(folder: Path) -> Pool:
    """All image files at and below `folder`, each with -1 for a label.

    Raises:
        ConfigError: it is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give one with image files")
    files = _image_files(folder)
    return Pool(Files(files), torch.full((len(files),), -1))


def _folder_pool(folder: Path, classes: tuple[str, ...], split: str) -> Pool:
    found: list[Path] = []
    labels: list[int] = []
    for path in _folders(folder):
        if path.name not in classes:
            raise ConfigError(f"{path} is a class that train does not have{nearest(path.name, classes)}: remove or rename it")
        files = _image_files(path)
        if not files and split == "train":
            raise ConfigError(f"{path} holds no image ({', '.join(IMG_EXTENSIONS)}): add some or remove the folder")
        found += files
        labels += [classes.index(path.name)] * len(files)
    if not found:
        raise ConfigError(f"{folder} holds no image: add some or remove the folder")
    return Pool(Files(found), class_labels(labels))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    files = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in files if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith("."))


def table(
    root: Path, task: str, *, file: str, path_column: str, label_column: str, split_column: str, separator: str
) -> Source:
    """A table of image paths and labels.

    Args:
        root: Folder that `file` is relative to; the paths in the table are relative to the table.
        task: classification (the label is a name), multilabel (names joined by `separator`, or nothing), or regression (a
            number).
        split_column: Says train, val or test for each image; a table without this column is split by Fourfold.

    Raises:
        ConfigError: for a missing table, column or image file, and for an empty or unreadable label; it names the line.
    """
    place = root / file
    if not place.is_file():
        raise ConfigError(
            f"dataset.kwargs.file={file} is not a file in dataset.root={root}: give the table of paths and labels"
        )
    with place.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        for key, column in (("path_column", path_column), ("label_column", label_column)):
            if column not in columns:
                raise ConfigError(
                    f"dataset.kwargs.{key}={column} is not a column of {place}, which has {', '.join(columns) or 'none'}"
                    f"{nearest(column, columns)}"
                )
        rows = [(reader.line_num, row) for row in reader]
    words: dict[str, list[tuple[int, str]]] = {}
    paths: dict[str, list[Path]] = {}
    for line, row in rows:
        split = (row.get(split_column) or "train").strip().lower()
        if split not in SPLIT_NAMES:
            raise ConfigError(f"line {line} of {place} has {split_column}={split}: write train, val or test")
        image = place.parent / (row[path_column] or "")
        if not image.is_file():
            raise ConfigError(f"line {line} of {place} names the image {image}, which does not exist: correct the path")
        paths.setdefault(SPLIT_NAMES[split], []).append(image)
        words.setdefault(SPLIT_NAMES[split], []).append((line, (row[label_column] or "").strip()))
    if "train" not in words:
        raise ConfigError(f"{place} holds no training image: add rows, or write train into the column {split_column}")
    classes = _names(words["train"], task, separator)
    pools = {split: Pool(Files(paths[split]), _table_labels(words[split], task, classes, separator, place)) for split in words}
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _names(words: list[tuple[int, str]], task: str, separator: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    names = {name for _, word in words for name in (_several(word, separator) if task == "multilabel" else [word])} - {""}
    return tuple(sorted(names, key=lambda name: (int(name), "") if name.isdecimal() else (float("inf"), name)))


def _several(word: str, separator: str) -> list[str]:
    return [name.strip() for name in word.split(separator) if name.strip()]


def _table_labels(words: list[tuple[int, str]], task: str, classes: tuple[str, ...], separator: str, place: Path) -> Tensor:
    numbers = {name: i for i, name in enumerate(classes)}
    multi_hot = torch.zeros(len(words), len(classes))
    values: list[float] = []
    for row, (line, word) in enumerate(words):
        if task == "multilabel":
            for name in _several(word, separator):
                multi_hot[row, _number(name, numbers, line, place)] = 1
        elif not word:
            raise ConfigError(f"line {line} of {place} has no label: fill it in or remove the line")
        elif task == "classification":
            values.append(_number(word, numbers, line, place))
        else:
            values.append(_value(word, line, place))
    if task == "multilabel":
        return multi_hot
    return class_labels(values) if task == "classification" else torch.tensor(values)


def _number(name: str, numbers: dict[str, int], line: int, place: Path) -> int:
    if name not in numbers:
        raise ConfigError(
            f"line {line} of {place} has the label {name}, which no training image has{nearest(name, numbers)}: "
            "correct it or remove the line"
        )
    return numbers[name]


def _value(word: str, line: int, place: Path) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ConfigError(
            f"line {line} of {place} has the label {word}, which is not a number: dataset.task=regression needs one"
        )
    return value


def from_target(path: str, kwargs: dict[str, Any], task: str, seed: int) -> Source:
    """Call the user's function.

    It gets `kwargs`, and `seed` if it takes one; what it draws at random is a function of the seed either way. It returns one
    map-style dataset of (image, target) pairs, or a dict of them with the keys `train` and, where there are such, `val`, `test`
    and `classes` (names). Labels are read from an attribute `targets` or `labels` of a dataset where it has one, otherwise by
    going through all its items once.

    Raises:
        ConfigError: if what comes back is something else.
    """
    function = resolve(path)
    parameters = inspect.signature(function).parameters
    with randomness.undisturbed():
        randomness.start(seed)
        made = function(**kwargs, **({"seed": seed} if "seed" in parameters and "seed" not in kwargs else {}))
    parts = dict(made) if isinstance(made, dict) else {"train": made}
    if "train" not in parts:
        raise ConfigError(
            f"dataset._target_={path} gave {sorted(parts)}: it must give train, and may give val, test and classes"
        )
    names = parts.pop("classes", None)
    for split, dataset in parts.items():
        if split not in ("train", "val", "test") or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            if split in ("val", "test") and dataset is None:
                continue
            raise ConfigError(
                f"dataset._target_={path} gave {split}={type(dataset).__name__}: give map-style datasets train, val and test "
                "(with __len__ and __getitem__), and classes"
            )
    pools = {
        split: Pool(FirstOf(dataset, name=f"{split} of {path}"), _own_labels(dataset, task, path))
        for split, dataset in parts.items()
        if dataset is not None
    }
    classes = tuple(map(str, names)) if names is not None else _numbered(pools["train"].labels, parts["train"], task)
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _numbered(labels: Tensor, dataset: Any, task: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    count = labels.shape[1] if task == "multilabel" else int(labels.max()) + 1
    names: Sequence[Any] = getattr(dataset, "classes", None) or range(count)
    return tuple(map(str, names))


def _own_labels(dataset: Any, task: str, path: str) -> Tensor:
    found = next((getattr(dataset, name) for name in LABEL_ATTRIBUTES if hasattr(dataset, name)), None)
    if found is None:
        found = [dataset[i][1] for i in range(len(dataset))]
    try:
        labels = torch.as_tensor(np.asarray(found).astype(np.int64 if task == "classification" else np.float32))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dataset._target_={path} has labels that are no numbers ({error}): give class numbers") from error
    if labels.ndim != (2 if task == "multilabel" else 1):
        raise ConfigError(
            f"dataset._target_={path} has labels of shape {list(labels.shape)}, but dataset.task={task} takes "
            f"{'[images, labels]' if task == 'multilabel' else 'one number per image'}"
        )
    return labels
