"""Small configurations, datasets and files for the tests of this room."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.config import DatasetConfig, LoaderConfig, TransformConfig
from fourfold.data.pools import Pool, Source

LOADER = LoaderConfig(
    sampler="random",
    subset=None,
    collate="stack",
    drop_last=False,
    num_workers=0,
    pin_memory=False,
    persistent_workers=False,
)
FAKE = {"size": 40, "test_size": 12, "num_classes": 4, "image_size": 20, "channels": 3}
DATASET = DatasetConfig(
    name="fake",
    source="fake",
    _target_=None,
    kwargs=FAKE,
    root="nowhere",
    download=False,
    task="classification",
    in_chans=3,
    train_size=None,
    fraction=None,
    shots=None,
    val_fraction=0.2,
    val_size=None,
    test_fraction=0.25,
    test_size=None,
    folds=None,
    split_seed=None,
    loader=LOADER,
)
PLAIN = TransformConfig(name="none", augmentation="none", hflip=False, min_scale=0.25, magnitude=9, mixup=0.0, cutmix=0.0)


@dataclass(frozen=True)
class Preprocessing:
    size: int = 16
    resize: int = 16
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.4, 0.5, 0.6)
    std: tuple[float, ...] = (0.2, 0.25, 0.3)


def dataset(loader: dict[str, Any] | None = None, **changes: Any) -> DatasetConfig:
    return replace(DATASET, loader=replace(LOADER, **(loader or {})), **changes)


def transform(augmentation: str, **changes: Any) -> TransformConfig:
    return replace(PLAIN, name=augmentation, augmentation=augmentation, **changes)


def source(*counts: int, val: int = 0, test: int = 0) -> Source:
    """`counts` training images of each class, shuffled; val and test have that many of each class."""
    rng = np.random.default_rng(0)

    def pool(sizes: tuple[int, ...]) -> Pool:
        labels = torch.tensor(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
        return Pool(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels)

    again = (1,) * len(counts)
    return Source(
        pool(counts),
        pool(tuple(val * n for n in again)) if val else None,
        pool(tuple(test * n for n in again)) if test else None,
        tuple(f"c{i}" for i in range(len(counts))),
    )


def write_image(path: Path, grey: int = 128, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Path:
    """Of one grey; no other file holds the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, grey if mode == "L" else (grey,) * len(mode)).save(path)
    with path.open("ab") as file:  # what stands behind an image is not read
        file.write(str(path).encode())
    return path


class Shapes(Dataset):
    """Images of different sizes, filled with their own number."""

    def __init__(self, sizes: list[tuple[int, int]], dtype: torch.dtype = torch.uint8) -> None:
        self.sizes, self.dtype = sizes, dtype
        self.targets = [i % 2 for i in range(len(sizes))]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, *self.sizes[index]), index + 1, dtype=self.dtype), self.targets[index]
