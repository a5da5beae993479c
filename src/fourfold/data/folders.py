"""The user's own images: a folder for each class, or any folder of images."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from fourfold.config import ConfigError, nearest
from fourfold.data.pools import SPLIT_NAMES, Files, Pool, Source, class_labels

SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".gif", ".avif", ".jp2")  # those of torchvision and more that Pillow reads

log = logging.getLogger(__name__)


def image_folder(root: Path) -> Source:
    """One folder per class, directly in `root` or in `root/train`, and then `root/val` and `root/test` where there are such.

    Images lie anywhere below their class's folder; hidden folders are passed over, other files too, but not in silence.

    Raises:
        ConfigError: if the folder does not exist or does not look like this.
    """
    if not root.is_dir():
        raise ConfigError(f"dataset.root={root} is not a folder: give the folder that holds one folder of images per class")
    folders: dict[str, Path] = {}
    every = _folders(root)
    others = [path for path in every if path.name.lower() not in SPLIT_NAMES]
    for path in every:
        split = SPLIT_NAMES.get(path.name.lower())
        if others and _holds_images_alone(path):
            continue  # a class that is called so, such as Train beside Bus
        if split in folders:
            raise ConfigError(
                f"dataset.root={root} has {folders[split].name}/ and {path.name}/, which both mean {split}: keep one"
            )
        if split is not None:
            folders[split] = path
    if folders and "train" not in folders:
        names = " and ".join(f"{path.name}/" for path in folders.values())
        raise ConfigError(f"dataset.root={root} has {names} but no train/: add it, or give the folder of the classes")
    if folders and others:
        beside = ", ".join(f"{path.name}/" for path in others[:5])
        log.warning("%s: passed over %s beside train/, since no split is called so", root, beside)
    folders = folders or {"train": root}
    classes = tuple(path.name for path in _folders(folders["train"]))
    if not classes:
        raise ConfigError(f"{folders['train']} holds no folders: put the images of each class into a folder of its name")
    passed_over: Counter[str] = Counter()
    pools = {split: _folder_pool(folder, classes, split, passed_over) for split, folder in folders.items()}
    _tell(passed_over, root)
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def folder_of_images(folder: Path) -> Pool:
    """All image files at and below `folder`, each with -1 for a label.

    Raises:
        ConfigError: it is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give one with image files")
    passed_over: Counter[str] = Counter()
    files = _image_files(folder, passed_over)
    _tell(passed_over, folder)
    return Pool(Files(files), torch.full((len(files),), -1))


def _folder_pool(folder: Path, classes: tuple[str, ...], split: str, passed_over: Counter[str]) -> Pool:
    found: list[Path] = []
    labels: list[int] = []
    for path in _folders(folder):
        if path.name not in classes:
            raise ConfigError(f"{path} is a class that train does not have{nearest(path.name, classes)}: remove or rename it")
        files = _image_files(path, passed_over)
        if not files and split == "train":
            raise ConfigError(f"{path} holds no image ({', '.join(SUFFIXES)}): add some or remove the folder")
        found += files
        labels += [classes.index(path.name)] * len(files)
    if not found:
        raise ConfigError(f"{folder} holds no image: add some or remove the folder")
    return Pool(Files(found), class_labels(labels))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images_alone(folder: Path) -> bool:
    return not _folders(folder) and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


def _image_files(folder: Path, passed_over: Counter[str]) -> list[Path]:
    """Those at and below `folder`; counts the others by their suffix."""
    found = []
    for path in _files(folder):
        if path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            passed_over[path.suffix.lower() or "no suffix"] += 1
    return sorted(found)


def _files(folder: Path) -> Iterator[Path]:
    """All that are not hidden, also behind links, but no folder twice: a link may lead to where it lies."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _tell(passed_over: Counter[str], root: Path) -> None:
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(5))
        log.warning("%s: passed over what is no image in a format known here (%s): convert what should be one", root, kinds)
