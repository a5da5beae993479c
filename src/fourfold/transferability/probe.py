"""How well simple classifiers read the features of images that they did not learn: a linear probe, nearest neighbours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.transferability.inputs import Floats, centred, features_of, labels_of, one_hot

FOLDS = 4
STRENGTHS = (0.01, 0.1, 1.0)  # scikit-learn's C: the inverse of the L2 penalty's weight
TEMPERATURE = 0.07
ROWS = 1024  # of the similarity matrix held at once


@dataclass(frozen=True)
class Probe:
    """A linear probe, judged by cross-validation.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        c: the strength that gave it.
        correct: [N] bool, by image, each answered by the fold that had not seen it.
    """

    accuracy: float
    c: float
    correct: NDArray[np.bool_]


def linear_probe(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> Probe:
    """4-fold cross-validated accuracy of logistic regression on standardised features, at the best C of .01, .1 and 1.

    The features are standardised by each fold's training part. The best C is chosen on the same folds, which flatters the
    accuracy a little, in the same way for all features of one task.

    Args:
        features: [N, D].
        labels: [N] integers.
        seed: which images share a fold (stratified by class).

    Raises:
        ValueError: a class has fewer images than there are folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    matrix = features_of(features)
    renumbered, _ = labels_of(labels, len(matrix))
    fewest = int(np.bincount(renumbered).min())
    if fewest < FOLDS:
        raise ValueError(
            f"a class has {fewest} of the labels: a probe over {FOLDS} folds needs {FOLDS} of each, give more images"
        )
    correct = np.zeros((len(STRENGTHS), len(matrix)), dtype=bool)
    for train, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(matrix, renumbered):
        seen, unseen = _standardised(matrix[train], matrix[held])
        for row, c in enumerate(STRENGTHS):
            model = LogisticRegression(C=c, max_iter=500, tol=1e-3).fit(seen, renumbered[train])
            correct[row, held] = model.predict(unseen) == renumbered[held]
    best = int(correct.mean(axis=1).argmax())
    return Probe(float(correct[best].mean()), STRENGTHS[best], correct[best])


def knn_accuracy(features: ArrayLike, labels: ArrayLike, k: int = 20) -> float:
    """Leave-one-out accuracy of weighted nearest neighbours by cosine similarity.

    Wu, Xiong, Yu and Lin 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978:
    each of the k nearest other images votes for its class with exp(cosine / .07). Features are centred first. Nothing learns,
    so there is no seed.

    Args:
        features: [N, D].
        labels: [N] integers; an image that is alone in its class counts as wrong, since nobody can vote for it.
        k: neighbours; at most N - 1 are asked.

    Returns:
        A share, 0 to 1. Costs O(N^2 D).
    """
    if k < 1:
        raise ValueError(f"k={k} asks no neighbour: give 1 or more")
    points = centred(features_of(features))
    renumbered, classes = labels_of(labels, len(points))
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    asked = min(k, len(points) - 1)
    votes_for = one_hot(renumbered, classes)
    right = 0
    for start in range(0, len(points), ROWS):
        part = np.arange(start, min(start + ROWS, len(points)))
        similarity = points[part] @ points.T  # [rows, N]
        similarity[np.arange(len(part)), part] = -np.inf  # nobody votes for itself
        nearest = np.argpartition(-similarity, asked - 1, axis=1)[:, :asked]
        weights = np.exp((np.take_along_axis(similarity, nearest, axis=1) - 1) / TEMPERATURE)
        votes = np.einsum("nk,nkc->nc", weights, votes_for[nearest])
        right += int(np.count_nonzero(votes.argmax(axis=1) == renumbered[part]))
    return right / len(points)


def _standardised(train: Floats, held: Floats) -> tuple[Floats, Floats]:
    """By the mean and standard deviation of `train`; a feature that is constant there becomes 0 in both."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    steady = scale <= 1e-12 * np.abs(train).max(axis=0)
    factor = np.where(steady, 0.0, 1 / np.where(steady, 1.0, scale))
    return (train - mean) * factor, (held - mean) * factor
