"""Ranks and tests over places, against loops and published quantiles."""

import numpy as np
import pytest

from fourfold.study.ranking import friedman

NAMES = ("a", "b", "c", "d")
SCORES = np.random.default_rng(3).normal(size=(14, 4)) + np.array([0.0, 1.5, 0.2, 1.6])


def test_mean_ranks_and_chi_square_are_those_of_a_loop() -> None:
    """Demšar 2006 (JMLR 7), section 3.2.2, where no scores are equal."""
    ranking = friedman(NAMES, SCORES)
    assert ranking is not None
    ranks = {name: np.mean([1 + sum(other > row[i] for other in row) for row in SCORES]) for i, name in enumerate(NAMES)}
    assert dict(zip(ranking.strategies, ranking.ranks, strict=True)) == pytest.approx(ranks)
    assert list(ranking.ranks) == sorted(ranking.ranks)
    chi_square = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in ranks.values()) - 4 * 5**2 / 4)
    assert ranking.chi_square == pytest.approx(chi_square)


@pytest.mark.parametrize(("count", "quantile"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_published_quantiles(count: int, quantile: float) -> None:
    """Demšar 2006, table 5 (a), level 0.05."""
    ranking = friedman([str(i) for i in range(count)], np.random.default_rng(0).normal(size=(14, count)))
    assert ranking is not None
    assert ranking.critical_difference == pytest.approx(quantile * np.sqrt(count * (count + 1) / (6 * 14)), rel=5e-4)


def test_neighbours_within_the_critical_difference_are_joined_and_others_are_not() -> None:
    ranking = friedman(NAMES, SCORES)
    assert ranking is not None
    of = dict(zip(ranking.strategies, ranking.ranks, strict=True))
    joined = {frozenset((a, b)) for clique in ranking.cliques for a in clique for b in clique if a != b}
    within = {frozenset((a, b)) for a in NAMES for b in NAMES if a != b and abs(of[a] - of[b]) <= ranking.critical_difference}
    assert joined == within
    assert len(within) < 6


def test_equal_scores_tell_nothing_apart_and_few_places_give_no_ranking() -> None:
    same = friedman(("a", "b", "c"), np.ones((4, 3)))
    assert same is not None
    assert (same.p, same.ranks) == (1.0, (2.0, 2.0, 2.0))
    assert friedman(("a", "b", "c"), np.ones((2, 3))) is None
    assert friedman(("a", "b"), np.ones((5, 2))) is None
    assert friedman(("a", "b", "c"), np.full((5, 3), np.nan)) is None


def test_pure_noise_is_found_significant_one_time_in_twenty() -> None:
    draws = np.random.default_rng(0)
    p_values = [found.p for _ in range(400) if (found := friedman(("a", "b", "c", "d"), draws.normal(size=(12, 4))))]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.033)  # three standard errors
