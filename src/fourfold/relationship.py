"""Which classes of a source the classes of a target look like: p(source class | target class), learnt from target images.

The two approaches of Co-Tuning (You, Kou, Long and Wang 2020, "Co-Tuning for Transfer Learning", NeurIPS), of what the source's
classifier says of the target's training images.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 4
STRENGTHS = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)  # scikit-learn's C: the inverse of the L2 penalty's weight


def direct(probabilities: Floats, labels: Ints, classes: int) -> Floats:
    """p(s | t) as the mean of p(s | x) over the images of class t.

    Args:
        probabilities: of the source's classes for each image, [N, S], rows sum to 1.
        labels: target classes [N], each below `classes`.
        classes: T.

    Returns:
        [T, S], rows sum to 1; for a class without images, the mean over all of them.
    """
    found = np.tile(probabilities.mean(axis=0), (classes, 1))
    for label in np.unique(labels):
        found[label] = probabilities[labels == label].mean(axis=0)
    return found


def reverse(probabilities: Floats, labels: Ints, classes: int, seed: int = 0) -> Floats:
    """p(s | t) by Bayes' rule from p(t | s), a logistic regression of the target's class on p(s | x), and the mean of p(s | x).

    The regression has no intercept, so that its weights are the logits of p(t | s) where the source is sure of s. Its penalty
    is the one with which most images are told right by a regression that has not seen them, over `FOLDS` folds (fewer where a
    class has fewer images), and the logits are scaled by the one factor that makes the answers to unseen images likeliest. The
    authors' code judges both on the validation images; ours leaves these alone.

    Args:
        probabilities: of the source's classes for each image, [N, S], rows sum to 1.
        labels: target classes [N], each below `classes`; at least two classes occur.
        classes: T.
        seed: which images share a fold.

    Returns:
        [T, S], rows sum to 1; for a class without images, the mean over all of them.

    Raises:
        ValueError: a class has one image only, so that none is left to judge by.
    """
    from sklearn.model_selection import StratifiedKFold

    present, renumbered = np.unique(labels, return_inverse=True)
    fewest = int(np.bincount(renumbered).min())
    if fewest < 2:
        raise ValueError("a class has one training image only")
    told = np.zeros((len(STRENGTHS), len(labels), len(present)))  # logits of images that were not seen
    for seen, held in StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed).split(probabilities, renumbered):
        for row, weights in enumerate(_regressions(probabilities[seen], renumbered[seen], STRENGTHS)):
            told[row, held] = probabilities[held] @ weights.T
    best = int((told.argmax(axis=2) == renumbered).mean(axis=1).argmax())
    (weights,) = _regressions(probabilities, renumbered, STRENGTHS[best : best + 1])
    given_source = _softmax(_scale(told[best], renumbered) * weights.T)  # [S, T]: p(t | s)
    marginal = probabilities.mean(axis=0)
    joint = given_source.T * marginal
    found = np.tile(marginal, (classes, 1))
    found[present] = joint / joint.sum(axis=1, keepdims=True)
    return found


def _regressions(probabilities: Floats, labels: Ints, strengths: Sequence[float]) -> list[Floats]:
    """Weights [T, S] of a logistic regression for each strength."""
    from sklearn.linear_model import LogisticRegression

    found = []
    for c in strengths:
        weights = LogisticRegression(C=c, fit_intercept=False, max_iter=500).fit(probabilities, labels).coef_
        found.append(weights if len(weights) > 1 else np.vstack([-weights / 2, weights / 2]))  # of two classes it has one row
    return found


def _scale(logits: Floats, labels: Ints) -> float:
    """The factor a, from 1e-3 to 1e3, for which softmax(a logits) makes the labels likeliest."""
    from scipy.optimize import minimize_scalar

    def unlikely(exponent: float) -> float:
        scaled = np.exp(exponent) * logits
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())

    return float(np.exp(minimize_scalar(unlikely, bounds=(-np.log(1e3), np.log(1e3)), method="bounded").x))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
