"""How far the target's images lie from the source's, by the features of one network.

No distance here sees which classes are to be told apart: a task with shuffled labels can look close."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fourfold.transferability.inputs import Floats, features_of, labels_of, one_hot, same_width
from fourfold.transferability.probe import linear_probe

BATCH_NORM_EPS = 1e-5  # PyTorch's own: what it adds to a variance before it divides


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of a domain's features: all that `frechet_distance` needs of a source."""

    mean: Floats
    covariance: Floats


@dataclass(frozen=True)
class Prototypes:
    """Class means [K, D] of a domain and the share of each class [K]: all that `prototype_emd` needs of a source."""

    means: Floats
    weights: Floats


def moments(features: ArrayLike) -> Moments:
    """Mean and covariance (divided by N - 1) of features [N, D]."""
    matrix = features_of(features)
    return Moments(matrix.mean(axis=0), np.atleast_2d(np.cov(matrix, rowvar=False)))


def prototypes(features: ArrayLike, labels: ArrayLike) -> Prototypes:
    """Class means of features [N, D], weighted by how many of the labels [N] each class has."""
    matrix = features_of(features)
    renumbered, classes = labels_of(labels, len(matrix), least=1)
    counts = np.bincount(renumbered)
    return Prototypes((one_hot(renumbered, classes).T @ matrix) / counts[:, None], counts / len(matrix))


def frechet_distance(source: Moments, target: Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, as in the Frechet inception distance.

    Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X; Heusel et al. 2017, arXiv 1706.08500:
    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), the last trace by the eigenvalues of C_1^(1/2) C_2 C_1^(1/2).

    Returns:
        The features' squared unit, 0 and up; 0 for equal moments. Biased upwards where N is not much larger than D, so compare
        targets of one size only. Costs O(D^3).
    """
    from scipy.linalg import eigh, eigvalsh

    same_width(source.mean[None], target.mean[None])
    values, vectors = eigh(source.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(eigvalsh(root @ target.covariance @ root), 0.0)).sum()
    apart = ((source.mean - target.mean) ** 2).sum()
    return max(0.0, float(apart + np.trace(source.covariance) + np.trace(target.covariance) - 2 * cross))


def prototype_emd(source: Prototypes, target: Prototypes) -> float:
    """Earth mover's distance between the class means of two domains, with Euclidean ground distance.

    Cui, Song, Sun, Howard and Belongie 2018, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer Learning",
    arXiv 1806.06193: min over flows f >= 0 with the classes' shares as margins of sum_ij f_ij |m_i - m_j|.

    Returns:
        The features' unit, 0 and up. Solved exactly by a linear program with K_source K_target variables: about a second for
        1000 times 100 classes.

    Raises:
        ValueError: the domains' features differ in number.
        RuntimeError: the solver gave up.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack
    from scipy.spatial.distance import cdist

    same_width(source.means, target.means)
    distances = cdist(source.means, target.means)
    rows, columns = distances.shape
    leaving = kron(eye_array(rows), np.ones((1, columns)))
    arriving = kron(np.ones((1, rows)), eye_array(columns))
    shares = np.concatenate([source.weights / source.weights.sum(), target.weights / target.weights.sum()])
    # The last margin follows from the others; with it, shares that sum to 1 but for rounding would have no solution.
    margins = vstack([leaving, arriving]).tocsr()[:-1]
    solved = linprog(distances.ravel(), A_eq=margins, b_eq=shares[:-1], method="highs")
    if not solved.success:
        raise RuntimeError(f"the earth mover's distance of {rows} and {columns} classes was not found: {solved.message}")
    return max(0.0, float(solved.fun))


def domain_similarity(distance: float, gamma: float = 0.01) -> float:
    """exp(-gamma distance) in (0, 1], with the gamma of Cui et al. 2018 (arXiv 1806.06193).

    Gamma belongs to the scale of their features; on others the similarity may hardly vary. Use it to rank, with one network.
    """
    if not (distance >= 0 and gamma > 0):
        raise ValueError(f"distance={distance} and gamma={gamma}: a distance must be at least 0 and gamma positive")
    return float(np.exp(-gamma * distance))


def mmd(source: ArrayLike, target: ArrayLike) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased.

    Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13:723-773, eq. 3: mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over
    distinct images, k(a, b) = exp(-|a - b|^2 / (2 s^2)), s the median distance among all images of both domains.

    Args:
        source, target: [N, D] and [M, D].

    Returns:
        A pure number of at most 2, about 0 for equal domains (a little below it by chance), more is further apart. Costs
        O((N + M)^2 D) and as much memory as three matrices of (N + M)^2: give some thousand images.
    """
    from scipy.spatial.distance import pdist, squareform

    first, second = features_of(source, "source"), features_of(target, "target")
    same_width(first, second)
    distances = pdist(np.concatenate([first, second]))
    scale = float(np.median(distances))
    if scale == 0:  # more than half of all pairs are duplicates
        scale = float(distances[distances > 0].mean()) if distances.any() else 1.0
    kernel = squareform(np.exp(-((distances / scale) ** 2) / 2))  # its diagonal is 0: no image meets itself
    n, m = len(first), len(second)
    same = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(same - 2 * kernel[:n, n:].mean())


def proxy_a_distance(source: ArrayLike, target: ArrayLike, seed: int = 0) -> float:
    """2 (1 - 2 e), with the error e of a linear classifier that tells the two domains apart.

    Ben-David, Blitzer, Crammer and Pereira 2006, "Analysis of Representations for Domain Adaptation", NIPS 19; Ben-David et al.
    2010, doi:10.1007/s10994-009-5152-4. e is that of `linear_probe`, on images that it did not learn; of the larger domain as
    many images are drawn as the smaller one has.

    Returns:
        A pure number in [0, 2]: 0 for domains that cannot be told apart, 2 for those that always can. An error above one half
        counts as one half. Saturates early: with many features and few images nearly all domains can be told apart.

    Raises:
        ValueError: a domain has fewer than 4 images; see also `inputs`.
    """
    first, second = features_of(source, "source"), features_of(target, "target")
    same_width(first, second)
    generator = np.random.default_rng(seed)
    n = min(len(first), len(second))
    rows = [each[np.sort(generator.permutation(len(each))[:n])] for each in (first, second)]
    accuracy = linear_probe(np.concatenate(rows), np.repeat([0, 1], n), seed).accuracy
    return min(2.0, max(0.0, 2 * (2 * accuracy - 1)))


def batch_norm_shift(stored_mean: ArrayLike, stored_var: ArrayLike, target_mean: ArrayLike, target_var: ArrayLike) -> float:
    """How far batch-norm layers' stored statistics are from the target's; needs neither labels nor source images.

    Ours: KL(N(target) || N(stored)) = 1/2 (ln(v_s / v_t) + (v_t + (m_t - m_s)^2) / v_s - 1), averaged over all channels of all
    layers. Both variances get batch norm's own 1e-5, so that a dead channel has a finite shift.

    Args:
        stored_mean, stored_var: [C], running statistics of all layers, end to end.
        target_mean, target_var: [C], of the target's images at the same places.

    Returns:
        Nats per channel, 0 and up.

    Raises:
        ValueError: the four differ in shape, are not finite, or a variance is negative.
    """
    given = [np.asarray(each, dtype=np.float64) for each in (stored_mean, stored_var, target_mean, target_var)]
    shapes = [each.shape for each in given]
    if len(set(shapes)) > 1 or given[0].ndim != 1 or not given[0].size:
        raise ValueError(f"batch-norm statistics have shapes {shapes}: give four of the same length, one value per channel")
    m_s, v_s, m_t, v_t = given
    if not all(np.isfinite(each).all() for each in given) or v_s.min() < 0 or v_t.min() < 0:
        raise ValueError("batch-norm statistics must be finite and variances at least 0: these come from a model that diverged")
    v_s, v_t = v_s + BATCH_NORM_EPS, v_t + BATCH_NORM_EPS
    return float((0.5 * (np.log(v_s / v_t) + (v_t + (m_t - m_s) ** 2) / v_s - 1)).mean())
