"""Images in, batches out: sources, splits, transforms, order. The test split comes sealed."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.config import ConfigError, DatasetConfig, TransformConfig
from fourfold.data import randomness
from fourfold.data.batches import Batches, class_weights, image_seed, in_order
from fourfold.data.copies import copies
from fourfold.data.folders import folder_of_images
from fourfold.data.images import ImageSet, TensorSet
from fourfold.data.kept import KeptImages, KeptSquares
from fourfold.data.sealed import SealedSplit, TestSplitOpened
from fourfold.data.sources import open_source
from fourfold.data.splits import Manifest, choose
from fourfold.data.transforms import (
    Prepare,
    Preprocessing,
    evaluation,
    mixer,
    normalizer,
    plain_square,
    random_crops,
    short_side,
    training,
)

__all__ = [
    "Batches",
    "Manifest",
    "Outline",
    "Scale",
    "SealedSplit",
    "Splits",
    "TestSplitOpened",
    "class_weights",
    "image_seed",
    "in_order",
    "load_splits",
    "load_unlabelled",
    "mixer",
    "normalizer",
    "outline",
    "randomness",
]
log = logging.getLogger(__name__)
STEADY = ("image_folder", "csv", "torchvision", "huggingface")  # sources that give the same image each time


@dataclass(frozen=True)
class Outline:
    """What a model must know of a dataset before it exists."""

    num_outputs: int
    classes: tuple[str, ...]  # empty for regression
    task: str


@dataclass(frozen=True)
class Scale:
    """How the target of a regression is told to the network: as its deviation from `mean`, in units of `std`.

    So learning rates mean the same whether ages are in years or prices in cents. Both are of the training images.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, values: Tensor) -> "Scale":
        """That of float values [N]; of equal ones the unit is 1."""
        spread = values.double().std(correction=0).item()
        return cls(values.double().mean().item(), spread if spread > 0 else 1.0)

    def told(self, values: Tensor) -> Tensor:
        """Values [N] as the network is told them."""
        return ((values.double() - self.mean) / self.std).float()


@dataclass(frozen=True)
class Splits:
    """The chosen images of a run. Each part yields (uint8 [C, H, W], target); its `labels` [N] need no decoding."""

    train: Dataset
    val: Dataset
    test: SealedSplit
    num_outputs: int
    classes: tuple[str, ...]
    task: str
    manifest: Manifest
    class_counts: tuple[int, ...]  # training images of each class or label; empty for regression
    scale: Scale | None  # of the targets, for regression


def outline(config: DatasetConfig, seed: int) -> Outline:
    """Open the dataset (downloading it if need be) and say what it asks of a model.

    Raises:
        ConfigError: if it cannot be opened.
    """
    classes = open_source(config, _split_seed(config, seed)).classes
    return Outline(1 if config.task == "regression" else len(classes), classes, config.task)


def load_splits(
    config: DatasetConfig,
    transform: TransformConfig,
    preprocessing: Preprocessing,
    seed: int,
    keep: str = "off",
    folder: Path = Path(),
) -> Splits:
    """Choose the images of a run and say how they reach the model.

    Args:
        transform: Of the training images; the others get the evaluation transform.
        preprocessing: Of the model's weights.
        seed: The run's; it splits where `dataset.split_seed` is null.
        keep: As `cache.images`: which images are decoded once, and where they lie then.
        folder: For those on disk.

    Raises:
        ConfigError: if the dataset cannot be opened or is too small for what the config asks.
    """
    seed = _split_seed(config, seed)
    source = open_source(config, seed)
    manifest = choose(source, config, seed)
    collate, in_chans = config.loader.collate, config.in_chans
    scale = Scale.of(source.train.labels[manifest.train]) if config.task == "regression" else None
    smaller = keep in ("ram", "disk") and random_crops(transform) and config.source in STEADY
    if smaller:
        short = short_side(preprocessing)
        log.info("cache.images=%s: random crops come from images of %d pixels at the short side", keep, short)
    augmented = training(transform, preprocessing, in_chans, collate, resized=smaller)
    plain = evaluation(preprocessing, in_chans, collate)

    def part(origin: str, indices: np.ndarray, prepare: Prepare, recipe: TransformConfig | None) -> Dataset:
        pool = source.pool(origin)
        if scale is not None:
            pool = replace(pool, labels=scale.told(pool.labels))
        if isinstance(pool.images, Tensor) and plain_square(recipe, preprocessing, pool.images, collate):
            return TensorSet(pool.images, pool.labels, indices, in_chans)
        crops = recipe is not None and random_crops(recipe)
        steady = config.source in STEADY and not isinstance(pool.images, Tensor)  # which lie in memory, decoded
        if keep != "off" and steady and collate != "pad" and (smaller or not crops):
            kind = KeptSquares if prepare.vary is None else KeptImages
            short = short_side(preprocessing) if crops else None
            about = {"name": config.name, "root": str(Path(config.root).expanduser().resolve()), "kwargs": config.kwargs}
            about |= {"source": config.source, "split": origin}
            return kind(
                pool, indices, prepare, preprocessing.size, short=short, place=keep, folder=folder / "images", origin=about
            )
        return ImageSet(pool, indices, prepare, preprocessing.size)

    outlined = outline(config, seed)
    counts = _class_counts(source.train.labels[manifest.train], config, len(outlined.classes))
    absent = [name for name, count in zip(outlined.classes, counts, strict=False) if not count]
    if absent:
        log.warning("no training image of %s: are labels numbered from 0?", ", ".join(absent[:5]) + ", ..." * (len(absent) > 5))
    return Splits(
        train=part("train", manifest.train, augmented, transform),
        val=part(manifest.val_from, manifest.val, plain, None),
        test=SealedSplit(part(manifest.test_from, manifest.test, plain, None)),
        num_outputs=outlined.num_outputs,
        classes=outlined.classes,
        task=outlined.task,
        manifest=manifest,
        scale=scale,
        class_counts=counts,
    )


def load_unlabelled(
    config: DatasetConfig, folder: str | None, preprocessing: Preprocessing, seed: int, manifest: Manifest
) -> Dataset:
    """Images without labels, as evaluation shows them: uint8 [C, H, W], and -1 for a label.

    They are the images of the official training split that neither train, validate nor test, which `dataset.shots`,
    `train_size` or `fraction` left out; or all image files at and below `folder`. No test image is ever among the former, nor a
    copy of one.

    Args:
        manifest: Of the run.

    Raises:
        ConfigError: there are fewer than two.
    """
    if folder is not None:
        pool = folder_of_images(Path(folder).expanduser())
        left = np.arange(len(pool.images), dtype=np.int64)
    else:
        source = open_source(config, _split_seed(config, seed))
        pool = replace(source.train, labels=torch.full((len(source.train.labels),), -1))
        parts = (("train", manifest.train), (manifest.val_from, manifest.val), (manifest.test_from, manifest.test))
        used = np.concatenate([indices for origin, indices in parts if origin == "train"])
        left = np.setdiff1d(np.arange(len(pool.images), dtype=np.int64), used)
        tested = source.pool(manifest.test_from)
        left = left[~np.isin(left, [*copies(pool, left, tested, manifest.test)])]
    if len(left) < 2:
        raise ConfigError(
            f"{len(left)} images are left without labels, but adapt needs at least 2: give a folder as adapt.images, or fewer "
            "labelled ones by dataset.shots, train_size or fraction"
        )
    if isinstance(pool.images, Tensor) and plain_square(None, preprocessing, pool.images, config.loader.collate):
        return TensorSet(pool.images, pool.labels, left, config.in_chans)
    return ImageSet(pool, left, evaluation(preprocessing, config.in_chans, config.loader.collate), preprocessing.size)


def _class_counts(labels: Tensor, config: DatasetConfig, classes: int) -> tuple[int, ...]:
    if config.loader.sampler == "subset" and config.loader.subset is not None:
        labels = labels[[place for place in config.loader.subset if 0 <= place < len(labels)]]
    if config.task == "regression":
        return ()
    if config.task == "multilabel":
        return tuple(int(count) for count in labels.sum(0))
    return tuple(labels.bincount(minlength=classes).tolist())


def _split_seed(config: DatasetConfig, seed: int) -> int:
    return seed if config.split_seed is None else config.split_seed
