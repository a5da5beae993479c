"""Distances between domains against closed forms, other algorithms and loops."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import norm, wasserstein_distance

from fourfold.transferability import (
    Moments,
    Prototypes,
    batch_norm_shift,
    domain_similarity,
    frechet_distance,
    mmd,
    moments,
    prototype_emd,
    prototypes,
    proxy_a_distance,
)

G = np.random.default_rng(0)
SOURCE, TARGET = G.normal(size=(80, 6)), G.normal(size=(60, 6)) @ G.normal(size=(6, 6)) + 1


def test_frechet_distance_is_its_definition() -> None:
    a, b = moments(SOURCE), moments(TARGET)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(
        a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_commuting_gaussians() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    a, b = Moments(np.zeros(3), np.diag([1.0, 4.0, 0.0])), Moments(np.array([1.0, 2.0, 2.0]), np.diag([9.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 0 + 1)


def test_moments_of_more_features_than_images_are_close_to_themselves() -> None:
    wide = moments(G.normal(size=(10, 40)))
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-6)


def test_prototypes_are_class_means_and_shares() -> None:
    labels = np.array([3] * 20 + [9] * 60)
    found = prototypes(SOURCE, labels)
    assert found.means == pytest.approx(np.stack([SOURCE[:20].mean(axis=0), SOURCE[20:].mean(axis=0)]))
    assert found.weights == pytest.approx([0.25, 0.75])


def test_emd_on_a_line_is_the_wasserstein_distance() -> None:
    a = Prototypes(G.normal(size=(7, 1)), G.dirichlet(np.ones(7)))
    b = Prototypes(G.normal(size=(5, 1)) + 1, G.dirichlet(np.ones(5)))
    assert prototype_emd(a, b) == pytest.approx(wasserstein_distance(a.means[:, 0], b.means[:, 0], a.weights, b.weights))


def test_emd_of_equal_shares_is_the_best_assignment() -> None:
    a, b = Prototypes(SOURCE[:30], np.full(30, 1 / 30)), Prototypes(TARGET[:30], np.full(30, 30.0))
    distances = cdist(a.means, b.means)
    assert prototype_emd(a, b) == pytest.approx(distances[linear_sum_assignment(distances)].mean())
    assert prototype_emd(a, a) == pytest.approx(0, abs=1e-12)


def test_similarity_of_published_distances() -> None:
    """ImageNet to CUB, Dogs and Aircraft in the notebook of Cui et al.'s repository."""
    for distance, similarity in ((57.532, 0.563), (48.044, 0.619), (58.717, 0.556)):
        assert domain_similarity(distance) == pytest.approx(similarity, abs=5e-4)


def test_mmd_equals_the_loop() -> None:
    both = [*SOURCE[:12], *TARGET[:9]]
    scale = np.median([np.linalg.norm(both[i] - both[j]) for i in range(21) for j in range(i)])

    def k(i: int, j: int) -> float:
        return float(np.exp(-((np.linalg.norm(both[i] - both[j]) / scale) ** 2) / 2))

    expected = sum(k(i, j) for i in range(12) for j in range(12) if i != j) / (12 * 11)
    expected += sum(k(i, j) for i in range(12, 21) for j in range(12, 21) if i != j) / (9 * 8)
    expected -= 2 * sum(k(i, j) for i in range(12) for j in range(12, 21)) / (12 * 9)
    assert mmd(SOURCE[:12], TARGET[:9]) == pytest.approx(expected)


def test_mmd_is_about_zero_for_one_domain_and_grows_with_the_shift() -> None:
    other = G.normal(size=(80, 6))
    values = [mmd(SOURCE, other + shift) for shift in (0, 0.5, 1, 2, 4)]
    assert values == sorted(values)
    assert abs(values[0]) < 0.02 < values[1]


def test_a_distance_is_zero_for_one_domain_and_two_for_separable_ones() -> None:
    drawn = G.normal(size=(800, 6))
    assert proxy_a_distance(drawn[:400], drawn[400:]) < 0.25
    assert proxy_a_distance(drawn[:400], drawn[400:] + 20) == 2
    assert proxy_a_distance(drawn[:40], drawn[40:]) < 0.8  # not 1.8, as the larger domain's share of the images would give


def test_a_distance_of_shifted_gaussians_is_that_of_the_best_classifier() -> None:
    """Two unit Gaussians at distance d: the error is Phi(-d / 2)."""
    drawn = G.normal(size=(4000, 2))
    drawn[2000:, 0] += 1.5
    expected = 2 * (1 - 2 * norm.cdf(-0.75))
    assert proxy_a_distance(drawn[:2000], drawn[2000:]) == pytest.approx(expected, abs=0.08)  # sd of an error over 4000: .0066


def test_batch_norm_shift_is_the_divergence_of_gaussians() -> None:
    """Against the mean of ln p_target - ln p_stored under the target, by quantiles."""
    stored, target = (np.array([0.0, 1.0]), np.array([1.0, 4.0])), (np.array([0.5, 1.0]), np.array([2.0, 4.0]))
    u = (np.arange(20000) + 0.5) / 20000
    by_channel = []
    for c in range(2):
        p, q = norm(target[0][c], np.sqrt(target[1][c])), norm(stored[0][c], np.sqrt(stored[1][c]))
        by_channel.append((p.logpdf(p.ppf(u)) - q.logpdf(p.ppf(u))).mean())
    assert batch_norm_shift(*stored, *target) == pytest.approx(np.mean(by_channel), rel=1e-3)
    assert batch_norm_shift(*stored, *stored) == 0
    assert batch_norm_shift([0.0], [1.0], [0.0], [0.0]) == pytest.approx(0.5 * (np.log(1e5) - 1), rel=1e-4)  # a dead channel


def test_statistics_and_distances_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\(1,\), \(2,\)"):
        batch_norm_shift([0.0], [1.0, 1.0], [0.0], [0.0])
    with pytest.raises(ValueError, match="variances at least 0"):
        batch_norm_shift([0.0], [-1.0], [0.0], [1.0])
    with pytest.raises(ValueError, match="distance=-1"):
        domain_similarity(-1)
    for distance in (mmd, proxy_a_distance, lambda a, b: frechet_distance(moments(a), moments(b))):
        with pytest.raises(ValueError, match="source has 6 features and target 5"):
            distance(SOURCE, TARGET[:, :5])
