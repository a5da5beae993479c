"""LogME: how probable the labels are under the best Bayesian linear model of the features."""

import numpy as np
from numpy.typing import ArrayLike

from fourfold.transferability.inputs import Floats, directions, features_of, labels_of, one_hot

HYPERPRIOR = 1e-5  # as in the authors' code: keeps the precisions finite where the fit is perfect or useless
ROUNDS = 1000
ENOUGH = 1e-10  # nats per image


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log of the maximum evidence per image, averaged over the classes that occur.

    You, Liu, Wang and Long 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", arXiv 2102.11005:
    each class's 0/1 column goes through `log_evidence`.

    Args:
        features: [N, D].
        labels: [N] integers.

    Returns:
        Nats per image and class. No fixed range; -.22 to -.27 for ten balanced classes that the features do not separate,
        more is better. It grows with the number of classes and with imbalance, so compare networks on one target only. Not
        changed by rotating the features. Costs one SVD, O(N D min(N, D)).

    Raises:
        ValueError: see `inputs`.
    """
    matrix = features_of(features)
    renumbered, classes = labels_of(labels, len(matrix))
    return float(_maximum(matrix, one_hot(renumbered, classes)).mean())


def log_evidence(features: ArrayLike, targets: ArrayLike) -> Floats:
    """Log of the maximum evidence of each target column, divided by N; for regression and multilabel targets too.

    y = F w + noise, w ~ N(0, I / alpha), noise ~ N(0, I / beta); the result is

        max over alpha, beta of (1 / N) log N(y; 0, I / beta + F F^T / alpha)

    by MacKay's fixed point in the form of You et al. 2022 (arXiv 2110.10545): with t = alpha / beta, squared singular values
    s_i, gamma = sum_i s_i / (s_i + t),

        alpha = gamma / (|m|^2 + e),   beta = (N - gamma) / (|y - F m|^2 + e),   e = 1e-5.

    e is an exponential hyperprior of rate e / 2 on both precisions: without it a perfect fit has infinite evidence. Two things
    differ from the authors' code: it iterates until the evidence stands still (theirs: at most 11 times), and where N < D
    their sum over log(alpha + beta s_i) leaves out the D - N directions with s_i = 0, which ours (by cancelling them against
    D log alpha) counts, so that the value is the evidence as defined.

    Args:
        features: [N, D]; no intercept is added, as in the paper.
        targets: [N, K] or [N], floating point.

    Returns:
        [K], nats per image.
    """
    matrix = features_of(features)
    columns = np.asarray(targets, dtype=np.float64)
    columns = features_of(columns[:, None] if columns.ndim == 1 else columns, "targets")
    if len(columns) != len(matrix):
        raise ValueError(f"targets has {len(columns)} rows for {len(matrix)} rows of features: give one per image")
    return _maximum(matrix, columns)


def _maximum(features: Floats, targets: Floats) -> Floats:
    n = len(features)
    u, s, _ = directions(features)
    sigma = (s**2)[:, None]  # [r, 1]
    x2 = (u.T @ targets) ** 2  # [r, K]
    outside = np.maximum((targets**2).sum(axis=0) - x2.sum(axis=0), 0.0)  # what no direction reaches
    alpha, beta = np.ones(targets.shape[1]), np.ones(targets.shape[1])
    evidence = np.full(targets.shape[1], -np.inf)
    for _ in range(ROUNDS):
        t = alpha / beta
        gamma = (sigma / (sigma + t)).sum(axis=0)
        weights2 = (sigma * x2 / (sigma + t) ** 2).sum(axis=0)
        residual2 = (x2 * (t / (sigma + t)) ** 2).sum(axis=0) + outside
        previous = evidence
        evidence = (
            0.5 * n * np.log(beta / (2 * np.pi))
            - 0.5 * np.log1p(sigma / t).sum(axis=0)
            - 0.5 * beta * residual2
            - 0.5 * alpha * weights2
        ) / n
        if np.all(np.abs(evidence - previous) <= ENOUGH):
            break
        alpha = np.maximum(gamma, np.finfo(float).tiny) / (weights2 + HYPERPRIOR)
        beta = np.maximum(n - gamma, np.finfo(float).eps) / (residual2 + HYPERPRIOR)
    return evidence
