"""The statistics against scipy, against the definition, and against chance."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fourfold.study.statistics import (
    RESAMPLES,
    bootstrap_interval,
    cohens_d,
    estimate,
    hierarchical_interval,
    holm,
    paired_difference,
    permutation_p,
    seeds_needed,
    superiority,
    unpaired_difference,
)

VALUES = [0.912, 0.934, 0.887, 0.951, 0.920]
OTHERS = [0.905, 0.921, 0.890, 0.930, 0.899]


def test_the_interval_of_a_mean_is_scipys() -> None:
    ours = estimate(VALUES)
    assert ours.mean == pytest.approx(np.mean(VALUES))
    assert ours.std == pytest.approx(np.std(VALUES, ddof=1))
    low, high = stats.t.interval(0.95, df=len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread_and_none_is_refused() -> None:
    assert estimate([0.5]) == (type(estimate([0.5])))(0.5, None, 1, None, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    ours = paired_difference(dict(enumerate(VALUES)), dict(enumerate(OTHERS)))
    theirs = stats.ttest_rel(VALUES, OTHERS)
    interval = theirs.confidence_interval(0.95)
    assert ours is not None
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.estimate.low, ours.estimate.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_only_shared_seeds_are_paired() -> None:
    ours = paired_difference({0: 0.9, 1: 0.8, 7: 0.1}, {1: 0.7, 0: 0.6, 9: 0.0})
    assert ours is not None
    assert ours.estimate.n == 2
    assert ours.estimate.mean == pytest.approx(0.2)
    assert paired_difference({0: 0.9}, {1: 0.9}) is None


def test_a_single_pair_has_no_p_value() -> None:
    ours = paired_difference({0: 0.9}, {0: 0.5})
    assert ours is not None
    assert ours.p is None


def test_equal_differences_fall_back_to_the_exact_sign_flip_test() -> None:
    same = paired_difference({0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.5, 2: 0.6})
    none = paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert same is not None
    assert none is not None
    assert same.p == pytest.approx(stats.permutation_test(([0.1, 0.1, 0.1],), np.mean, permutation_type="samples").pvalue)
    assert none.p == 1.0


def test_the_rounding_of_a_score_is_no_spread() -> None:
    """528, 526 and 530 of 547 images against 541, 539 and 543: thirteen images at each seed, but not in float32."""
    ours, theirs = (
        {seed: float(np.float32(right) / np.float32(547)) for seed, right in enumerate(counts)}
        for counts in ((528, 526, 530), (541, 539, 543))
    )
    assert len({ours[seed] - theirs[seed] for seed in ours}) > 1
    found = paired_difference(ours, theirs)
    assert found is not None
    assert found.estimate.mean == pytest.approx(-13 / 547)
    assert found.estimate.std == pytest.approx(0.0, abs=1e-15)
    assert found.p == pytest.approx(0.25)
    assert found.effect == -math.inf


def test_values_that_are_not_finite_give_no_p_value() -> None:
    ours = paired_difference({0: math.nan, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert ours is not None
    assert ours.p is None


def test_holm_equals_the_step_down_procedure() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for level in (0.01, 0.021, 0.031, 0.05, 0.061):
        assert [p <= level for p in holm(p_values)] == _step_down(p_values, level)
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def _step_down(p_values: list[float], level: float) -> list[bool]:
    """The procedure as Holm tells it: compare the smallest with level / m, the next with level / (m - 1), until one fails."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    draws = np.random.default_rng(0).normal(0.0, 1.0, size=(2000, 3))
    covered = sum(1 for row in draws if (value := estimate(row.tolist())).low <= 0.0 <= value.high)  # type: ignore[operator]
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_the_permutation_test_counts_all_signs() -> None:
    """Against a naive loop over all 2^n ways to swap the two members of each pair."""
    differences = [a - b for a, b in zip(VALUES, OTHERS, strict=True)]
    seen = abs(sum(differences))
    swaps = itertools.product((1, -1), repeat=len(differences))
    extreme = [abs(sum(sign * each for sign, each in zip(signs, differences, strict=True))) >= seen - 1e-12 for signs in swaps]
    assert permutation_p(differences) == pytest.approx(np.mean(extreme))
    assert permutation_p([0.1]) is None
    assert permutation_p([0.1, math.nan]) is None


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_pairs_cannot_pass_the_permutation_test(n: int) -> None:
    assert permutation_p([0.3 + 0.01 * i for i in range(n)]) == pytest.approx(2.0 ** (1 - n))


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    """Against the exact bootstrap distribution: all 5^5 equally likely resamples."""
    means = np.mean(list(itertools.product(VALUES, repeat=len(VALUES))), axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(VALUES) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert bootstrap_interval(VALUES) == bootstrap_interval(VALUES)
    same = {"n_resamples": RESAMPLES, "method": "percentile", "rng": np.random.default_rng(0)}
    drawn = stats.bootstrap((np.asarray(VALUES),), np.mean, **same)
    assert bootstrap_interval(VALUES) == pytest.approx(drawn.confidence_interval, abs=1e-12)
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.5]) is None


def test_the_effect_is_the_t_statistic_without_the_root_of_n() -> None:
    differences = [a - b for a, b in zip(VALUES, OTHERS, strict=True)]
    t = stats.ttest_1samp(differences, 0).statistic
    assert cohens_d(differences) == pytest.approx(t / math.sqrt(len(differences)))
    assert cohens_d([0.1, 0.1]) == math.inf
    assert cohens_d([0.0, 0.0]) == 0.0
    assert cohens_d([0.1]) is None


def test_superiority_is_the_share_of_pairs_won() -> None:
    assert superiority([0.1, -0.2, 0.3, 0.0]) == pytest.approx(2.5 / 4)
    assert superiority([]) is None


def test_the_seeds_needed_show_the_difference_four_times_in_five_and_one_seed_fewer_does_not() -> None:
    draws = np.random.default_rng(0)
    for effect, std, comparisons in ((0.02, 0.02, 1), (0.02, 0.03, 3), (0.1, 0.01, 2)):
        n = seeds_needed(effect, std, comparisons)
        assert n is not None
        power = {
            pairs: np.mean(stats.ttest_1samp(draws.normal(effect, std, (20_000, pairs)), 0, axis=1).pvalue < 0.05 / comparisons)
            for pairs in (n - 1, n)
        }
        assert power[n - 1] < 0.8 + 0.01  # three standard errors of 20,000 draws
        assert power[n] > 0.8 - 0.01


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(0.1, 0.0) == 2
    assert seeds_needed(1e-6, 0.1) is None
    assert seeds_needed(0.0, 0.1) is None
    assert seeds_needed(math.nan, 0.1) is None


def test_independent_runs_are_compared_by_welchs_test() -> None:
    ours = unpaired_difference(VALUES, OTHERS[:4])
    theirs = stats.ttest_ind(VALUES, OTHERS[:4], equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert ours is not None
    assert (ours.p, ours.estimate.mean) == (pytest.approx(theirs.pvalue), pytest.approx(np.mean(VALUES) - np.mean(OTHERS[:4])))
    assert (ours.estimate.low, ours.estimate.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert unpaired_difference([0.5], VALUES) is None
    same = unpaired_difference([0.5, 0.5], [0.4, 0.4])
    assert same is not None
    assert same.p is None


def right(generator: np.random.Generator, seeds: int, images: int, spread: float = 0.0) -> list[np.ndarray]:
    """Answers to shared images of which some are hard for all, by seeds of which some are better."""
    hard = generator.normal(0, 1, images)
    return [(generator.normal(0, 0.5, images) + hard < 1 + luck).astype(np.int8) for luck in generator.normal(0, spread, seeds)]


def drawn_naively(values: list[np.ndarray], *, same_images: bool, draws: int) -> np.ndarray:
    """The definition, one draw after the other, image by image."""
    generator, means = np.random.default_rng(7), []
    for _ in range(draws):
        shared = generator.integers(len(values[0]), size=len(values[0]))
        rows = [each[shared if same_images else generator.integers(len(each), size=len(each))].mean() for each in values]
        means.append(np.mean(generator.choice(rows, size=max(1, len(values) - 1))))
    return np.array(means)


@pytest.mark.parametrize("same_images", [True, False])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_drawing_seeds_and_images_is_the_naive_loop(seeds: int, same_images: bool) -> None:
    values = right(np.random.default_rng(seeds), seeds, 150, spread=0.3)
    ours = hierarchical_interval(values, same_images=same_images)
    assert ours is not None
    means = drawn_naively(values, same_images=same_images, draws=4000)
    # five standard errors of a quantile at .025, of 2000 and of 4000 draws, for a normal distribution: .37 of its deviation
    assert ours == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.37 * means.std())


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_seeds_that_agree_leave_the_binomial_error_of_the_images(seeds: int) -> None:
    values = [np.arange(600) < 480] * seeds
    ours = hierarchical_interval(values, same_images=True)
    assert ours is not None
    half = 1.96 * math.sqrt(0.8 * 0.2 / 600)
    assert ours == pytest.approx((0.8 - half, 0.8 + half), abs=0.2 * half)


def test_its_width_is_the_exact_variance_of_drawing_rows_and_columns() -> None:
    """Var(a'Cb) with the covariances of two independent multinomial draws; many seeds, so that the draws are near normal."""
    table = np.stack(right(np.random.default_rng(3), 30, 400, spread=0.3)).astype(float)
    n, images = table.shape
    of_seeds = (np.eye(n) / n - 1 / n**2) / (n - 1)
    of_images = (np.eye(images) / images - 1 / images**2) / images
    a, b = np.full(n, 1 / n), np.full(images, 1 / images)
    spread = table @ of_images @ table.T
    variance = a @ spread @ a + b @ table.T @ of_seeds @ table @ b + np.trace(of_seeds @ spread)
    ours = hierarchical_interval([*table.astype(np.int8)], same_images=True)
    assert ours is not None
    assert ours[1] - ours[0] == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def test_an_interval_over_seeds_misses_what_other_images_would_give() -> None:
    """Ten seeds on one set of 200 images, 200 times: 95 % intervals must cover the score on all images there could be."""
    generator, covered, by_seeds = np.random.default_rng(0), 0, 0
    truth = stats.norm.cdf(1 / math.sqrt(1 + 0.5**2 + 0.1**2))
    for _ in range(200):
        values = right(generator, 10, 200, spread=0.1)
        both, seeds = hierarchical_interval(values, same_images=True), estimate([each.mean() for each in values])
        assert both is not None
        assert seeds.low is not None
        assert seeds.high is not None
        covered += both[0] <= truth <= both[1]
        by_seeds += seeds.low <= truth <= seeds.high
    assert covered / 200 >= 0.91  # three standard errors below .95
    assert by_seeds / 200 < 0.8


def test_there_is_no_interval_of_no_image() -> None:
    assert hierarchical_interval([], same_images=True) is None
    assert hierarchical_interval([np.zeros(3), np.zeros(0)], same_images=False) is None
