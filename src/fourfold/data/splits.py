"""Which images train, validate and test: a function of the labels and the seed alone, so all strategies see the same ones."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fourfold.config import ConfigError, DatasetConfig
from fourfold.data.copies import copies
from fourfold.data.pools import Files, Source
from fourfold.files import write_json

BINS = 10  # strata of a regression target, by rank
WORDS = {"val": "validation", "test": "test"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """The chosen images: positions in the official split that each part was drawn from.

    They stand in an order of which every prefix is stratified, so that the first batches of an evaluation, or the first images
    of the training set, are a fair sample.
    """

    dataset: str
    train: np.ndarray  # int64
    val: np.ndarray
    test: np.ndarray
    val_from: str  # the official split that val indexes: "val", or "train" where it was cut from train
    test_from: str
    hash: str  # sha256 over the dataset's name, the positions and the labels
    # for val and test, the positions of images that are copies of training images, and of these; None: images are no files
    copies: dict[str, dict[int, int]] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain lists and strings."""
        return {
            "dataset": self.dataset,
            "hash": self.hash,
            "train": {"from": "train", "indices": self.train.tolist()},
            "val": {"from": self.val_from, "indices": self.val.tolist()},
            "test": {"from": self.test_from, "indices": self.test.tolist()},
            "copies": {split: [*found.items()] for split, found in (self.copies or {}).items()},
        }

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self.to_json())


def choose(source: Source, config: DatasetConfig, seed: int) -> Manifest:
    """Choose the images of each part.

    The test images are settled first, then validation, then training, each as a prefix of a stratified order; so a larger
    training set contains the smaller one of the same seed, and neither validation nor test depends on the training size. A
    test split that the dataset brings is the same for all seeds, `dataset.test_size` or not. With `dataset.folds` the seeds 0
    to folds - 1 test each image once, the next so many once more, in other parts.

    Args:
        seed: Of the split (`dataset.split_seed`, or the run's seed).

    Raises:
        ConfigError: if there are too few images, in all or of one class, for what the config asks.
    """
    labels = source.train.labels
    train = np.arange(len(labels), dtype=np.int64)
    if source.test is not None:
        if config.folds is not None:
            raise ConfigError(
                f"dataset.folds={config.folds} cuts test images from those of training, but dataset={config.name} brings a "
                "test split: leave folds out, or put all images into one split"
            )
        test_from, test = "test", _order(source.test.labels, 0, "test")  # the same images whatever the seed
    elif config.folds is not None:
        test_from, (test, train) = "train", _fold(source, train, config.folds, seed)
    else:
        count = max(1, round(config.test_fraction * len(train)))
        test_from, (test, train) = "train", _cut(source, train, count, seed, "test")
    test = test[: config.test_size]
    if source.val is not None:
        val_from, val = "val", _order(source.val.labels, seed, "val")[: config.val_size]
    else:
        count = config.val_size or max(1, round(config.val_fraction * len(train)))
        val_from, (val, train) = "train", _cut(source, train, count, seed, "val")
    train = _training(source, train, config, seed)
    digest = hashlib.sha256(config.name.encode())
    held_out = {"val": (val_from, val), "test": (test_from, test)}
    for name, (origin, part) in {"train": ("train", train), **held_out}.items():
        digest.update(f"|{name} of {origin}|".encode() + part.tobytes() + source.pool(origin).labels[part].numpy().tobytes())
    return Manifest(config.name, train, val, test, val_from, test_from, digest.hexdigest(), _seen(source, train, held_out))


def _seen(source: Source, train: np.ndarray, held_out: dict[str, tuple[str, np.ndarray]]) -> dict[str, dict[int, int]] | None:
    """As `Manifest.copies`. Of what was cut from train there are none, and what others have split is left as it is."""
    if not isinstance(source.train.images, Files):
        return None
    found: dict[str, dict[int, int]] = {}
    for name, (origin, part) in held_out.items():
        pool = source.pool(origin)
        found[name] = copies(pool, part, source.train, train)
        if found[name] and isinstance(pool.images, Files):
            one, other = next(iter(found[name].items()))
            log.warning(
                "%d of %d %s images are copies of training images (%s is %s) and flatter the score: manifest.json has them all",
                *(len(found[name]), len(part), WORDS[name], pool.images.paths[one], source.train.images.paths[other]),
            )
    return found


def stratified_order(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of all positions in which every prefix is stratified.

    The r-th image (from 0) of a stratum of n stands at sqrt(r (r + 1)) / n. A prefix then divides its seats among the strata by
    the method of Huntington and Hill: whole quotas are met exactly, none is off by much, every stratum gets one image before
    any gets a second, and more images never take one away from a stratum.

    Args:
        strata: int64 [N], the stratum of each image.
        rng: Draws which images of a stratum come first, and breaks ties.
    """
    shuffled = np.argsort(rng.random(len(strata)), kind="stable")
    _, stratum, sizes = np.unique(strata[shuffled], return_inverse=True, return_counts=True)
    grouped = np.argsort(stratum, kind="stable")
    rank = np.empty(len(strata))
    rank[grouped] = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.sqrt(rank * (rank + 1)) / sizes[stratum]
    return shuffled[np.lexsort((rng.random(len(strata)), place))]


def _order(labels: Tensor, seed: int, purpose: str) -> np.ndarray:
    return stratified_order(_strata(labels), _rng(seed, purpose))


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed & (2**64 - 1), *purpose.encode()]))


def _strata(labels: Tensor) -> np.ndarray:
    """What to balance: the class; of several labels the rarest that an image has; of a number its tenth of the ranking."""
    values = labels.numpy()
    if values.dtype == np.int64:
        return values
    if values.ndim == 1:
        return np.argsort(np.argsort(values, kind="stable"), kind="stable") * BINS // max(1, len(values))
    rarity = np.where(values > 0, -values.sum(0), -np.inf)
    strata = np.where(values.any(1), rarity.argmax(1), -1)
    alone = np.bincount(strata + 1, minlength=2) == 1
    return np.where(alone[strata + 1], -1, strata)  # a label that one image has cannot be divided


def _fold(source: Source, left: np.ndarray, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the part of the positions `left` that a seed tests: (taken, what is left).

    Parts differ by at most one image, in all and of each stratum.
    """
    if folds > len(left):
        raise ConfigError(f"dataset.folds={folds} is more than the {len(left)} images: choose at most one for each")
    labels = source.train.labels[left]
    shuffled = _rng(seed // folds, "folds").permutation(len(left))
    dealt = shuffled[np.argsort(_strata(labels)[shuffled], kind="stable")]  # like cards, one stratum after the other
    part = np.sort(dealt[seed % folds :: folds])
    taken = left[part[_order(labels[part], seed, "test")]]
    return _apart(source, left, taken, np.delete(left, part), "test")


def _cut(source: Source, left: np.ndarray, count: int, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Take `count` of the positions `left` away from training: (taken, what is left)."""
    word = WORDS[purpose]
    if count >= len(left):
        raise ConfigError(
            f"{count} {word} images cannot be cut from the {len(left)} of train: "
            f"choose a smaller dataset.{purpose}_size, or give a dataset with a {word} split"
        )
    order = _order(source.train.labels[left], seed, purpose)
    return _apart(source, left, left[order[:count]], left[order[count:]], word)


def _apart(source: Source, left: np.ndarray, taken: np.ndarray, rest: np.ndarray, word: str) -> tuple[np.ndarray, np.ndarray]:
    """What was taken of `left`, and the rest without copies of it.

    Raises:
        ConfigError: nothing is left of a class.
    """
    _refuse_lost(source, left, rest, word, f"too few to cut {word} images from")
    twice = copies(source.train, rest, source.train, taken)
    if twice:
        log.warning("%d images are left out of training, since they are copies of %s images", len(twice), word)
        rest = rest[~np.isin(rest, [*twice])]
        _refuse_lost(source, left, rest, word, f"all copies of each other or of {word} images")
    return taken, rest


def _refuse_lost(source: Source, left: np.ndarray, rest: np.ndarray, word: str, why: str) -> None:
    """Refuse a cut that leaves nothing to train on, of a class or at all."""
    labels = source.train.labels
    if labels.dtype.is_floating_point:
        if len(rest) == 0:
            raise ConfigError(f"the {len(left)} training images are {why}: add images")
        return
    lost = np.setdiff1d(labels[left].numpy(), labels[rest].numpy())
    if len(lost):
        images = int((labels[left] == int(lost[0])).sum())
        raise ConfigError(
            f"class {source.classes[lost[0]]} has {images} training image{'s' * (images > 1)}, {why}: "
            f"add images, leave the class out, or give a dataset with a {word} split"
        )


def _training(source: Source, left: np.ndarray, config: DatasetConfig, seed: int) -> np.ndarray:
    """The training images that `train_size`, `fraction` or `shots` keep of the positions `left`."""
    labels = source.train.labels[left]
    order = _order(labels, seed, "train")
    if config.shots is not None:
        return left[_shots(labels.numpy()[order], order, config.shots, source.classes)]
    count, key = len(left), ""
    if config.train_size is not None:
        count, key = config.train_size, f"dataset.train_size={config.train_size}"
    if config.fraction is not None:
        count, key = round(config.fraction * len(left)), f"dataset.fraction={config.fraction}"
    if count > len(left):
        raise ConfigError(
            f"{key}, but only {len(left)} training images are left after validation and test: choose at most that"
        )
    classes = 1 if labels.dtype.is_floating_point else len(labels.unique())
    if count < classes:
        raise ConfigError(
            f"{key} gives {count} training images for {classes} classes: choose at least one per class, or dataset.shots=1"
        )
    return left[order[:count]]


def _shots(labels: np.ndarray, order: np.ndarray, shots: int, classes: tuple[str, ...]) -> np.ndarray:
    """The first `shots` of each class in `order`; `labels` are those of the images in that order."""
    counts = np.bincount(labels, minlength=len(classes))
    fewest = int(counts.argmin())
    if counts[fewest] < shots:
        raise ConfigError(
            f"dataset.shots={shots}, but class {classes[fewest]} has {counts[fewest]} training images left after validation "
            f"and test: choose {counts[fewest]} or fewer, or leave the class out"
        )
    places = [np.flatnonzero(labels == label)[:shots] for label in range(len(classes))]
    return order[np.sort(np.concatenate(places))]
