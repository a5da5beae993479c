"""What a measure is given, checked and in float64: features, labels, probabilities; and the directions that features have."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Directions(NamedTuple):
    """The thin singular value decomposition of features, without the directions in which they do not vary.

    Attributes:
        u: [N, r], orthonormal columns: the images' coordinates along each direction, in units of its singular value.
        s: [r], singular values, largest first; r may be 0.
        v: [D, r], orthonormal columns: the directions.
    """

    u: Floats
    s: Floats
    v: Floats


def features_of(features: ArrayLike, name: str = "features") -> Floats:
    """[N, D] in float64.

    Raises:
        ValueError: not two-dimensional, fewer than two images, no feature, or a value that is not finite.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: give one row per image, [N, D] with at least 2 images and 1 feature")
    bad = np.count_nonzero(~np.isfinite(array))
    if bad:
        raise ValueError(
            f"{name} holds {bad} values that are not finite: all must be, so look for an overflow (fp16?) in the model"
        )
    return array


def labels_of(labels: ArrayLike, images: int, name: str = "labels", least: int = 2) -> tuple[Ints, int]:
    """Labels renumbered from 0 over the classes that occur, and how many classes these are.

    Raises:
        ValueError: not [images], not whole numbers, or fewer than `least` classes.
    """
    array = np.asarray(labels)
    if array.shape != (images,):
        raise ValueError(f"{name} has shape {array.shape}: give one class per image, ({images},)")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} is of type {array.dtype}: give the class numbers as integers")
    classes, renumbered = np.unique(array, return_inverse=True)
    if len(classes) < least:
        raise ValueError(f"{name} holds the single class {classes[0]}: a score compares at least {least} classes, add another")
    return renumbered.astype(np.int64), len(classes)


def probabilities_of(probabilities: ArrayLike, name: str = "source_probs") -> Floats:
    """[N, Z], each row rescaled to sum to exactly 1.

    Raises:
        ValueError: as `features_of`, or a row that is no distribution (a sum off 1 by 1e-3 is put down to half precision).
    """
    array = features_of(probabilities, name)
    sums = array.sum(axis=1)
    if array.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise ValueError(
            f"{name} holds values from {array.min():.3g} on and rows that sum to {sums.min():.3g} to {sums.max():.3g}: "
            "each row must be non-negative and sum to 1, so apply the softmax to logits"
        )
    return array / sums[:, None]


def same_width(first: Floats, second: Floats) -> None:
    """Features of two domains must come from one network.

    Raises:
        ValueError: they have different numbers of features.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"source has {first.shape[1]} features and target {second.shape[1]}: take both from one network")


def one_hot(labels: Ints, classes: int) -> Floats:
    """[N, K], 1 in the column of each image's class."""
    return (labels[:, None] == np.arange(classes)).astype(np.float64)


def directions(features: Floats) -> Directions:
    """Directions with a singular value above max(N, D) eps times the largest one, as in numpy's `matrix_rank`."""
    from scipy.linalg import svd

    u, s, vt = svd(features, full_matrices=False)
    kept = s > max(features.shape) * np.finfo(np.float64).eps * s[0]
    return Directions(u[:, kept], s[kept], vt[kept].T)


def centred(features: Floats) -> Floats:
    """Features minus their mean; a feature that is constant but for rounding becomes exactly 0."""
    mean = features.mean(axis=0)
    moved = features - mean
    noise = 1e-12 * np.abs(features).max(axis=0)
    return np.where(np.abs(moved).max(axis=0) <= noise, 0.0, moved)
