"""What every source gives: the images of each official split, undecoded, with their labels already known."""

import hashlib
import logging
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fourfold.config import ConfigError

# of folders and in tables, in small letters -> ours
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}

PATIENCE = 60.0  # seconds to look for more files that cannot be read, once there is one

log = logging.getLogger(__name__)


class Images(Protocol):
    """Images that are decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image | Tensor:
        """A PIL image, or a tensor [C, H, W]: uint8 pixels, or floats that are handed on as they are."""
        ...


@dataclass(frozen=True)
class Pool:
    """One official split."""

    images: Images | Tensor  # a tensor is uint8 [N, C, H, W], in memory
    labels: Tensor  # [N] int64 classes, [N, K] float32 multi-hot, or [N] float32 values

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ConfigError(
                f"the dataset has {len(self.images)} images but {len(self.labels)} labels: give one label per image"
            )


@dataclass(frozen=True)
class Source:
    """A whole dataset as its makers split it."""

    train: Pool
    val: Pool | None
    test: Pool | None
    classes: tuple[str, ...]  # empty for regression

    def pool(self, split: str) -> Pool:
        """The official split `train`, `val` or `test`, which must exist."""
        pool: Pool | None = getattr(self, split)
        assert pool is not None, split
        return pool


@dataclass(frozen=True)
class Files:
    """Image files on disk."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            return read_image(self.paths[index])
        except ConfigError as error:  # whoever mends one shall not be told of the next an hour later
            others = [path for path in self.unreadable if path != self.paths[index]]
            if not others:
                raise
            for path in others:
                log.warning("cannot be read either: %s", path)
            raise ConfigError(f"{error}; so do it with {len(others)} more, which are named above") from error

    @cached_property
    def unreadable(self) -> list[Path]:
        """The files that cannot be read, as many as are found in a minute."""
        found, end = [], time.monotonic() + PATIENCE
        for path in self.paths:
            if time.monotonic() > end:
                break
            try:
                read_image(path)
            except ConfigError:
                found.append(path)
        return found

    def facts(self) -> Iterator[tuple[Path, int, int]]:
        """Of each its path, its bytes, and when it was changed, in ns.

        Raises:
            ConfigError: a file is not there.
        """
        for path in self.paths:
            with readable(path):
                status = path.stat()
            yield path, status.st_size, status.st_mtime_ns

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each, int64 [N], as they were when somebody first asked."""
        return np.fromiter((size for _, size, _ in self.facts()), dtype=np.int64, count=len(self))


@dataclass(frozen=True)
class FirstOf:
    """The images of a map-style dataset of (image, target) pairs."""

    dataset: Any
    order: np.ndarray | None = None  # where the dataset's own order is not the same on every machine
    name: str = "the dataset"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        place = index if self.order is None else int(self.order[index])
        try:
            item = self.dataset[place]
            if not isinstance(item, tuple | list) or not item:
                raise ConfigError(f"item {place} of {self.name} is {type(item).__name__}: give pairs of (image, target)")
            return _image(item[0], f"image {place} of {self.name}")
        except OSError as error:
            raise ConfigError(f"image {place} of {self.name} cannot be read ({error}): replace or remove the file") from error


def _image(image: Any, name: str) -> Image.Image | Tensor:
    """What somebody's dataset calls an image, if it is one; arrays are told as torchvision does, [H, W] or [H, W, C]."""
    if isinstance(image, Image.Image):
        image.load()
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] in ((1,), (3,), (4,))):
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if isinstance(image, Tensor) and image.ndim == 3 and (image.dtype == torch.uint8 or image.is_floating_point()):
        return image
    told = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray | Tensor) else "no array"
    raise ConfigError(
        f"{name} is of type {type(image).__name__} ({told}): give a PIL image, a tensor [C, H, W] of uint8 or floats, "
        "or an array [H, W, C] of uint8"
    )


def read_image(path: Path) -> Image.Image:
    """Decode an image file and turn it upright by its EXIF orientation.

    Raises:
        ConfigError: if the file is missing or no readable image.
    """
    with readable(path), Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be read; what Pillow raises for a broken one depends on where it is broken."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"the image file {path} does not exist: correct its path or remove the link") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"the image file {path} cannot be read ({error}): replace it or remove it from the dataset"
        ) from error


def stamp(images: Images | Tensor) -> str:
    """Tells one set of images from another: pixels in memory by their bytes, files by name, size and time of change.

    Of images that come when asked for no more than their number is known: who stores what was made of them compares a few.
    """
    digest = hashlib.blake2b(f"{type(images).__name__} {len(images)}".encode(), digest_size=16)
    if isinstance(images, Tensor):
        digest.update(images.contiguous().numpy().data)
    for path, size, changed in images.facts() if isinstance(images, Files) else ():
        digest.update(f"|{path} {size} {changed}".encode())
    return digest.hexdigest()


def class_labels(labels: Any) -> Tensor:
    """Class numbers in any form (list, array, tensor) as int64 [N]."""
    return torch.as_tensor(np.asarray(labels).astype(np.int64))
