"""LEEP, NCE and N-LEEP against loops."""

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from fourfold.transferability import leep, n_leep, nce

G = np.random.default_rng(0)
LABELS = G.integers(0, 4, 60)
PROBABILITIES = G.dirichlet(np.ones(6), 60)


def looped(probabilities: np.ndarray, labels: np.ndarray) -> float:
    n, z = probabilities.shape
    joint = {(y, s): sum(probabilities[i, s] for i in range(n) if labels[i] == y) / n for y in set(labels) for s in range(z)}
    marginal = [sum(joint[y, s] for y in set(labels)) for s in range(z)]
    return sum(math.log(sum(joint[labels[i], s] / marginal[s] * probabilities[i, s] for s in range(z))) for i in range(n)) / n


def entropy(labels: np.ndarray) -> float:
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def test_leep_equals_the_loop() -> None:
    assert leep(PROBABILITIES, LABELS) == pytest.approx(looped(PROBABILITIES, LABELS))
    unused = np.concatenate([PROBABILITIES, np.zeros((60, 2))], axis=1)  # classes that the source never sees
    assert leep(unused, LABELS) == pytest.approx(leep(PROBABILITIES, LABELS))


def test_leep_is_zero_for_a_source_that_knows_and_the_entropy_for_one_that_guesses() -> None:
    assert leep(np.eye(6)[LABELS + 1], LABELS) == pytest.approx(0)
    assert leep(np.full((60, 6), 1 / 6), LABELS) == pytest.approx(-entropy(LABELS))


def test_nce_equals_its_definition_and_leep_of_hard_decisions() -> None:
    source = PROBABILITIES.argmax(axis=1)
    expected = -sum((source == z).mean() * entropy(LABELS[source == z]) for z in set(source))
    assert nce(source, LABELS) == pytest.approx(expected)
    assert nce(source, LABELS) == pytest.approx(leep(np.eye(6)[source], LABELS))
    assert nce(np.zeros(60, dtype=int), LABELS) == pytest.approx(-entropy(LABELS))


def test_n_leep_is_leep_of_a_mixture_over_principal_components() -> None:
    features = G.normal(size=(120, 8)) * np.linspace(3, 0.3, 8)
    labels = (features[:, 0] > 0).astype(int)
    kept = PCA(0.8, svd_solver="full").fit_transform(features)
    scaled = kept / np.linalg.norm(features - features.mean(axis=0), ord=2)
    mixture = GaussianMixture(10, covariance_type="diag", random_state=3).fit(scaled)
    expected = looped(mixture.predict_proba(scaled), labels)
    assert n_leep(features, labels, seed=3) == pytest.approx(expected, abs=0.02)  # axes may be mirrored, which moves k-means
    assert n_leep(features, labels, seed=3) == n_leep(features, labels, seed=3)


def test_n_leep_of_constant_features_is_the_entropy() -> None:
    assert n_leep(np.full((60, 3), 0.1), LABELS) == pytest.approx(-entropy(LABELS))
