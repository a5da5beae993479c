"""H-score, GBC and TransRate against their definitions, written out; shrinkage against scikit-learn."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from fourfold.transferability import gbc, h_score, h_score_shrunk, transrate

G = np.random.default_rng(0)
LABELS = np.array([0] * 20 + [1] * 30 + [4] * 10)
FEATURES = (
    G.normal(size=(60, 5)) @ G.normal(size=(5, 5)) + G.normal(size=(3, 5))[np.unique(LABELS, return_inverse=True)[1]] + 10
)


def between(features: np.ndarray) -> np.ndarray:
    """Covariance of each image's class mean, divided by N."""
    means = np.stack([features[label == LABELS].mean(axis=0) for label in LABELS])
    return np.cov(means, rowvar=False, bias=True)


def test_h_score_is_its_definition() -> None:
    whole = np.cov(FEATURES, rowvar=False, bias=True)
    assert h_score(FEATURES, LABELS) == pytest.approx(np.trace(np.linalg.inv(whole) @ between(FEATURES)))


def test_h_score_is_not_changed_by_an_invertible_linear_map() -> None:
    assert h_score(FEATURES @ G.normal(size=(5, 5)) + 3, LABELS) == pytest.approx(h_score(FEATURES, LABELS))
    doubled = np.concatenate([FEATURES, FEATURES @ G.normal(size=(5, 4))], axis=1)  # singular: nothing new
    assert h_score(doubled, LABELS) == pytest.approx(h_score(FEATURES, LABELS))


def test_h_score_of_perfect_and_of_too_many_features_is_the_number_of_classes_less_one() -> None:
    assert h_score(np.eye(5)[LABELS], LABELS) == pytest.approx(2)
    assert h_score(G.normal(size=(60, 80)), LABELS) == pytest.approx(2)


@pytest.mark.parametrize("width", [5, 200], ids=["N>D", "N<D"])
def test_shrunk_h_score_uses_the_covariance_of_ledoit_and_wolf(width: int) -> None:
    features = FEATURES @ G.normal(size=(5, width)) + G.normal(size=(60, width))
    fitted = LedoitWolf().fit(features)
    expected = np.trace(np.linalg.inv(fitted.covariance_) @ between(features)) * (1 - fitted.shrinkage_)
    assert h_score_shrunk(features, LABELS) == pytest.approx(expected)


def test_published_shrunk_h_score_on_iris() -> None:
    """flairNLP/transformer-ranker, tests/estimators/test_hscore.py: 1.177842480406727, where cov(E[f | y]) divides by N - 1."""
    features, labels = load_iris(return_X_y=True)
    assert h_score_shrunk(features, labels) * 150 / 149 == pytest.approx(1.177842480406727, rel=1e-6)


@pytest.mark.parametrize(("apart", "spread"), [(0.0, 2.0), (1.5, 1.0), (3.0, 0.5)])
def test_gbc_of_two_gaussians_on_a_line_is_their_overlap(apart: float, spread: float) -> None:
    """exp(-D_B) is the integral of sqrt(p q); each unordered pair counts twice."""
    quantiles = norm.ppf((np.arange(4000) + 0.5) / 4000)
    first, second = quantiles / quantiles.std(), apart + spread * quantiles / quantiles.std()
    features, labels = np.concatenate([first, second])[:, None], np.repeat([0, 1], 4000)
    overlap, _ = quad(lambda x: np.sqrt(norm.pdf(x) * norm.pdf(x, apart, spread)), -20, 20, limit=200)
    for diagonal in (True, False):
        assert gbc(features, labels, diagonal=diagonal) == pytest.approx(-2 * overlap, rel=1e-6)


@pytest.mark.parametrize("diagonal", [True, False])
def test_gbc_equals_a_loop_over_pairs(diagonal: bool) -> None:
    kept = PCA(3, svd_solver="full").fit_transform(FEATURES)
    expected = 0.0
    for i in np.unique(LABELS):
        for j in set(LABELS) - {i}:
            a, b = kept[i == LABELS], kept[j == LABELS]
            covariances = [np.diag(c.var(axis=0) if diagonal else np.full(3, c.var(axis=0).mean())) for c in (a, b)]
            whole, apart = sum(covariances) / 2, a.mean(axis=0) - b.mean(axis=0)
            logs = [np.linalg.slogdet(c)[1] for c in (whole, *covariances)]
            expected -= np.exp(-apart @ np.linalg.inv(whole) @ apart / 8 - (logs[0] - sum(logs[1:]) / 2) / 2)
    assert gbc(FEATURES, LABELS, diagonal=diagonal, pca=3) == pytest.approx(expected)


def test_gbc_reaches_both_ends_of_its_range_and_ignores_the_unit() -> None:
    together = np.tile(G.normal(size=(20, 4)), (3, 1))
    labels = np.repeat([0, 1, 2], 20)
    assert gbc(together, labels) == pytest.approx(-6)
    assert gbc(together + 100 * labels[:, None], labels) == pytest.approx(0, abs=1e-9)
    assert gbc(FEATURES * 1e-6, LABELS) == pytest.approx(gbc(FEATURES, LABELS))


@pytest.mark.parametrize("width", [5, 40], ids=["N>D", "classes smaller than D"])
def test_transrate_is_its_log_determinants(width: int) -> None:
    features = FEATURES @ G.normal(size=(5, width)) + G.normal(size=(60, width))
    moved, eps = features - features.mean(axis=0), 0.1

    def rate(z: np.ndarray) -> float:
        return np.log(np.linalg.det(np.eye(width) + z.T @ z / (len(z) * eps))) / 2

    parts = [moved[label == LABELS] for label in np.unique(LABELS)]
    expected = rate(moved) - sum(len(part) / 60 * rate(part) for part in parts)
    assert transrate(features, LABELS, eps=eps) == pytest.approx(expected)
    assert transrate(features, LABELS, eps=eps) > 0
