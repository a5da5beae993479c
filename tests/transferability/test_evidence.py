"""LogME against the evidence as it is defined: a dense Gaussian density, maximised by brute force."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, ortho_group
from sklearn.datasets import load_iris

from fourfold.transferability import log_evidence, logme


def drawn(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n, width))
    return features, (features[:, 0] + generator.normal(size=n) > 0).astype(int) + (features[:, 1] > 1)


def density(log_alpha: float, log_beta: float, features: np.ndarray, target: np.ndarray) -> float:
    """ln N(y; 0, I / beta + F F^T / alpha) / N, with the N x N covariance written out."""
    covariance = np.eye(len(features)) / np.exp(log_beta) + features @ features.T / np.exp(log_alpha)
    return multivariate_normal(cov=covariance).logpdf(target) / len(features)


def best(features: np.ndarray, target: np.ndarray) -> float:
    """The largest density over a grid, refined."""
    grid = [(a, b) for a in np.linspace(-3, 8, 12) for b in np.linspace(-1, 6, 8)]
    start = max(grid, key=lambda at: density(*at, features, target))
    return -minimize(lambda at: -density(*at, features, target), start, method="Nelder-Mead", options={"xatol": 1e-5}).fun


@pytest.mark.parametrize(("n", "width"), [(40, 5), (30, 30), (20, 45)], ids=["N>D", "N=D", "N<D"])
def test_logme_is_the_largest_dense_evidence(n: int, width: int) -> None:
    features, labels = drawn(n, width)
    expected = np.mean([best(features, (labels == k).astype(float)) for k in np.unique(labels)])
    assert logme(features, labels) == pytest.approx(expected, abs=2e-4)  # the hyperprior of 1e-5 costs a little


def test_evidence_of_real_valued_targets() -> None:
    features, _ = drawn(40, 5)
    targets = features[:, :2] + 0.5 * np.random.default_rng(1).normal(size=(40, 2))
    assert log_evidence(features, targets) == pytest.approx([best(features, column) for column in targets.T], abs=2e-4)
    assert log_evidence(features, targets[:, 0])[0] == log_evidence(features, targets)[0]


def test_published_value_on_iris() -> None:
    """flairNLP/transformer-ranker, test_logme.py: -0.16006022, by a loop that stops 1e-3 short in alpha / beta."""
    assert logme(*load_iris(return_X_y=True)) == pytest.approx(-0.16006022033609904, abs=1e-6)


def test_logme_is_not_changed_by_a_rotation_nor_by_the_names_of_classes() -> None:
    features, labels = drawn(50, 6)
    turned = features @ ortho_group(6, seed=0).rvs()
    assert logme(turned, 7 * labels + 3) == pytest.approx(logme(features, labels), abs=1e-9)


def test_useless_features_reach_the_evidence_of_no_features() -> None:
    """Ten balanced classes and features of noise: each column is N(0, E y^2) at best."""
    labels = np.arange(2000) % 10
    noise = np.random.default_rng(0).normal(size=(2000, 3))
    assert logme(noise, labels) == pytest.approx(-0.5 * np.log(2 * np.pi * np.e * 0.1), abs=3e-3)
    assert logme(np.zeros((2000, 3)), labels) == pytest.approx(-0.5 * np.log(2 * np.pi * np.e * 0.1), abs=1e-4)
