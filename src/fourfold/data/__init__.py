"""Images in, batches out: sources, splits, transforms, order. The test split comes sealed."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.config import DatasetConfig, TransformConfig
from fourfold.data import randomness
from fourfold.data.batches import Batches, class_weights, image_seed
from fourfold.data.images import ImageSet, TensorSet
from fourfold.data.sealed import SealedSplit, TestSplitOpened
from fourfold.data.sources import open_source
from fourfold.data.splits import Manifest, choose
from fourfold.data.transforms import Prepare, Preprocessing, evaluation, mixer, normalizer, plain_square, training

__all__ = [
    "Batches",
    "Manifest",
    "Outline",
    "SealedSplit",
    "Splits",
    "TestSplitOpened",
    "class_weights",
    "image_seed",
    "load_splits",
    "mixer",
    "normalizer",
    "outline",
    "randomness",
]


@dataclass(frozen=True)
class Outline:
    """What a model must know of a dataset before it exists."""

    num_outputs: int
    classes: tuple[str, ...]  # empty for regression
    task: str


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


def outline(config: DatasetConfig, seed: int) -> Outline:
    """Open the dataset (downloading it if need be) and say what it asks of a model.

    Raises:
        ConfigError: if it cannot be opened.
    """
    classes = open_source(config, _split_seed(config, seed)).classes
    return Outline(1 if config.task == "regression" else len(classes), classes, config.task)


def load_splits(config: DatasetConfig, transform: TransformConfig, preprocessing: Preprocessing, seed: int) -> Splits:
    """Choose the images of a run and say how they reach the model.

    Args:
        transform: Of the training images; the others get the evaluation transform.
        preprocessing: Of the model's weights.
        seed: The run's; it splits where `dataset.split_seed` is null.

    Raises:
        ConfigError: if the dataset cannot be opened or is too small for what the config asks.
    """
    seed = _split_seed(config, seed)
    source = open_source(config, seed)
    manifest = choose(source, config, seed)
    collate, in_chans = config.loader.collate, config.in_chans
    augmented = training(transform, preprocessing, in_chans, collate)
    plain = evaluation(preprocessing, in_chans, collate)

    def part(origin: str, indices: np.ndarray, prepare: Prepare, recipe: TransformConfig | None) -> Dataset:
        pool = source.pool(origin)
        if isinstance(pool.images, Tensor) and plain_square(recipe, preprocessing, pool.images, collate):
            return TensorSet(pool.images, pool.labels, indices, in_chans)
        return ImageSet(pool, indices, prepare, preprocessing.size)

    outlined = outline(config, seed)
    return Splits(
        train=part("train", manifest.train, augmented, transform),
        val=part(manifest.val_from, manifest.val, plain, None),
        test=SealedSplit(part(manifest.test_from, manifest.test, plain, None)),
        num_outputs=outlined.num_outputs,
        classes=outlined.classes,
        task=outlined.task,
        manifest=manifest,
        class_counts=_class_counts(source.train.labels[manifest.train], config, len(outlined.classes)),
    )


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
