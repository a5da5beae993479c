"""How far apart the classes lie in feature space: H-score, its shrunk form, Bhattacharyya coefficients, TransRate."""

import numpy as np
from numpy.typing import ArrayLike

from fourfold.transferability.inputs import Floats, Ints, centred, directions, features_of, labels_of, one_hot


def h_score(features: ArrayLike, labels: ArrayLike) -> float:
    """tr(cov(f)^-1 cov(E[f | y])): the variance between the classes in units of the whole variance.

    Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer Learning", ICIP,
    doi:10.1109/ICIP.2019.8803726. Where cov(f) is singular its pseudo-inverse is taken. With F = U S V^T centred, the trace is
    sum_k n_k |mean of U over class k|^2, so that nothing is inverted.

    Args:
        features: [N, D].
        labels: [N] integers.

    Returns:
        A pure number in [0, min(K - 1, D)], more is better; not changed by an invertible linear map of the features. Features
        of rank N - 1 (as good as any with N <= D) give K - 1 whatever they are: take `h_score_shrunk` there. Costs one SVD.
    """
    matrix, renumbered, classes = _given(features, labels)
    u, _, _ = directions(centred(matrix))
    sums = one_hot(renumbered, classes).T @ u  # [K, r]
    return float(((sums**2).sum(axis=1) / np.bincount(renumbered)).sum())


def h_score_shrunk(features: ArrayLike, labels: ArrayLike) -> float:
    """H-score with a covariance that a few images can support.

    Ibrahim, Ponomareva and Mazumder 2022, "Newer is Not Always Better: Rethinking Transferability Metrics, Their Peculiarities,
    Stability and Performance", arXiv 2110.06893:

        tr(((1 - a) cov(f) + a v I)^-1 (1 - a) cov(E[f | y])),   v = tr(cov(f)) / D,

    with a after Ledoit and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4. Both covariances divide by N.

    Returns:
        A pure number in [0, min(K - 1, D)], more is better; not changed by rotating or scaling the features. Costs one SVD.
    """
    matrix, renumbered, classes = _given(features, labels)
    moved = centred(matrix)
    n, width = moved.shape
    a = _ledoit_wolf(moved)
    u, s, _ = directions(moved)
    if not len(s):
        return 0.0
    variance = s**2 / n
    means = (one_hot(renumbered, classes).T @ u) * s / np.bincount(renumbered)[:, None]  # [K, r], in the basis of V
    between = (np.bincount(renumbered) / n) @ means**2  # [r], the diagonal of cov(E[f | y])
    return float(((1 - a) * between / ((1 - a) * variance + a * variance.sum() / width)).sum())


def gbc(features: ArrayLike, labels: ArrayLike, *, diagonal: bool = False, pca: int | None = 64) -> float:
    """Minus the overlap of all pairs of classes, each taken for a Gaussian.

    Pandy et al. 2022, "Transferability Estimation using Bhattacharyya Class Separability", arXiv 2111.12780:

        - sum over i != j of exp(-D_B(i, j)),
        D_B = 1/8 sum_d (m_id - m_jd)^2 / v_d + 1/2 sum_d ln(v_d / sqrt(v_id v_jd)),   v = (v_i + v_j) / 2.

    No variance is taken for less than 1e-4 of the features' mean variance (the authors: than 1e-4), so that the score does not
    depend on the features' scale and a class of one image has one.

    Args:
        features: [N, D].
        labels: [N] integers.
        diagonal: each feature has its own variance within a class; otherwise one variance serves all, the authors' default.
        pca: how many principal components are kept first; None keeps the features as they are.

    Returns:
        A pure number in [-K (K - 1), 0], more is better; each pair counts twice. Costs one SVD (with `pca`) and O(K^2 D).
    """
    matrix, renumbered, classes = _given(features, labels)
    moved = centred(matrix)
    if pca is not None:
        if pca < 1:
            raise ValueError(f"pca={pca} keeps no component: give 1 or more, or None for the features as they are")
        u, s, _ = directions(moved)
        moved = u[:, :pca] * s[:pca] if len(s) else moved[:, :1]
    rows = one_hot(renumbered, classes) / np.bincount(renumbered)  # [N, K]
    means = rows.T @ moved  # [K, D]
    variances = rows.T @ (moved - means[renumbered]) ** 2
    if not diagonal:
        variances = np.repeat(variances.mean(axis=1, keepdims=True), moved.shape[1], axis=1)
    scale = moved.var(axis=0).mean()
    variances = np.maximum(variances, 1e-4 * scale if scale > 0 else 1.0)
    overlap = 0.0
    for i in range(classes - 1):
        both = (variances[i] + variances[i + 1 :]) / 2  # [K - i - 1, D]
        apart = ((means[i] - means[i + 1 :]) ** 2 / both).sum(axis=1) / 8
        unlike = (np.log(both) - (np.log(variances[i]) + np.log(variances[i + 1 :])) / 2).sum(axis=1) / 2
        overlap += 2 * np.exp(-apart - unlike).sum()
    return -float(overlap)


def transrate(features: ArrayLike, labels: ArrayLike, eps: float = 1e-4) -> float:
    """The coding rate of all images minus that within the classes: how much a label tells about the features.

    Huang et al. 2022, "Frustratingly Easy Transferability Estimation", arXiv 2106.09362, on centred features:

        R(Z) - sum_k (n_k / N) R(Z_k),   R(Z) = 1/2 ln det(I + Z^T Z / (n eps)).

    The classes are weighted by their size, which makes it a mutual information; the paper's listing gives each 1 / K, which is
    the same for balanced classes.

    Args:
        features: [N, D].
        labels: [N] integers.
        eps: squared distortion of the code, in the features' squared unit.

    Returns:
        Nats, at least 0, more is better. It grows with D and with the features' scale, so compare like with like, or divide
        features by their standard deviation first. Costs O(N D min(N, D)).
    """
    matrix, renumbered, classes = _given(features, labels)
    if not eps > 0:
        raise ValueError(f"eps={eps} is no distortion: give a positive number, such as 1e-4")
    moved = centred(matrix)
    within = sum((renumbered == k).mean() * _coding_rate(moved[renumbered == k], eps) for k in range(classes))
    return float(_coding_rate(moved, eps) - within)


def _given(features: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints, int]:
    matrix = features_of(features)
    return matrix, *labels_of(labels, len(matrix))


def _coding_rate(rows: Floats, eps: float) -> float:
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows  # either has the same determinant
    _, log_det = np.linalg.slogdet(np.eye(len(gram)) + gram / (len(rows) * eps))
    return 0.5 * float(log_det)


def _ledoit_wolf(moved: Floats) -> float:
    """The weight of the identity; from centred features."""
    n, width = moved.shape
    gram = moved @ moved.T if n < width else moved.T @ moved
    covariance2 = (gram**2).sum() / n**2  # |cov|^2
    trace = np.trace(gram) / n
    noise = (((moved**2).sum(axis=1) ** 2).sum() / n - covariance2) / n
    spread = covariance2 - trace**2 / width
    return 0.0 if spread <= 0 else float(np.clip(noise / spread, 0.0, 1.0))
