"""How well the classes that a source model sees predict the labels: LEEP, NCE, and N-LEEP, which needs no source head."""

import warnings

import numpy as np
from numpy.typing import ArrayLike

from fourfold.transferability.inputs import Floats, Ints, centred, directions, features_of, labels_of, one_hot, probabilities_of

ENERGY = 0.8  # of the variance, kept by N-LEEP's principal components
COMPONENTS = 5  # Gaussians per class


def leep(source_probs: ArrayLike, labels: ArrayLike) -> float:
    """Log of the expected empirical prediction.

    Nguyen, Hassner, Seeger and Archambeau 2020, "LEEP: A New Measure to Evaluate Transferability of Learned Representations",
    arXiv 2002.12462. With p(z | x) of the source model and P(y, z) = mean over images of [y_i = y] p(z | x_i):

        (1 / N) sum_i ln sum_z P(y_i | z) p(z | x_i).

    Args:
        source_probs: [N, Z], the source head's softmax on the target's images.
        labels: [N] integers.

    Returns:
        Nats per image, at most 0, more is better; the labels' negative entropy (-ln K for balanced classes) where the source
        model tells nothing. With Z near or above N it approaches 0 by memorising. Costs O(N Z K).
    """
    probabilities = probabilities_of(source_probs)
    renumbered, classes = labels_of(labels, len(probabilities))
    return _leep(probabilities, renumbered, classes)


def nce(source_labels: ArrayLike, labels: ArrayLike) -> float:
    """Negative conditional entropy, -H(Y | Z), of the labels given the source model's hard decisions.

    Tran, Nguyen and Hassner 2019, "Transferability and Hardness of Supervised Classification Tasks", arXiv 1908.08142:
    (1 / N) sum_i ln P(y_i | z_i), with P counted over the same images.

    Args:
        source_labels: [N] integers, the source head's most probable class, or true source labels where images have both.
        labels: [N] integers.

    Returns:
        Nats per image in [-ln K, 0], more is better. Costs O(N + Z K).
    """
    renumbered, classes = labels_of(labels, np.shape(labels)[0] if np.ndim(labels) else 0)
    seen, kinds = labels_of(source_labels, len(renumbered), "source_labels", least=1)
    counts = np.zeros((kinds, classes))
    np.add.at(counts, (seen, renumbered), 1)
    return float(np.log((counts / counts.sum(axis=1, keepdims=True))[seen, renumbered]).mean())


def n_leep(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> float:
    """LEEP with the posterior of a Gaussian mixture over the features in place of a source head.

    Li et al. 2021, "Ranking Neural Checkpoints", arXiv 2011.11200: principal components, a mixture, LEEP of its posterior. Here
    the components hold 80% of the variance, the mixture has 5 Gaussians per class (as public code does) but never more than one
    per two distinct images, and its covariances are diagonal, which principal components make apt and a few images can support.

    Args:
        features: [N, D].
        labels: [N] integers.
        seed: of the mixture's start.

    Returns:
        Nats per image, at most 0, more is better. Below about 10 images per class the mixture memorises and the score
        approaches 0 for any features. Costs one SVD and some tens of rounds of O(N K D).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    matrix = features_of(features)
    renumbered, classes = labels_of(labels, len(matrix))
    u, s, _ = directions(centred(matrix))
    if not len(s):
        return _leep(np.ones((len(matrix), 1)), renumbered, classes)  # constant features: one Gaussian holds all
    kept = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), ENERGY)) + 1
    points = u[:, :kept] * s[:kept] / s[0]  # the mixture's floor under variances is absolute
    count = max(1, min(COMPONENTS * classes, len(np.unique(matrix, axis=0)) // 2))
    mixture = GaussianMixture(count, covariance_type="diag", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # where it stops is as good a start for a score
        posterior = mixture.fit(points).predict_proba(points)
    return _leep(posterior, renumbered, classes)


def _leep(probabilities: Floats, labels: Ints, classes: int) -> float:
    joint = one_hot(labels, classes).T @ probabilities  # [K, Z]
    total = joint.sum(axis=0)
    conditional = joint[:, total > 0] / total[total > 0]  # P(y | z)
    return float(np.log((probabilities[:, total > 0] @ conditional.T)[np.arange(len(labels)), labels]).mean())
