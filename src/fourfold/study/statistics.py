"""What can be said from a few seeds: means with intervals, paired differences, and p-values corrected for their number.

Pure functions on numbers. Nothing here knows runs, strategies or files. Random draws are seeded: equal values, equal answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, stdtr, stdtrit

CONFIDENCE = 0.95
LEVEL = 0.05  # of the corrected p-values that a winner needs
POWER = 0.8  # with which `seeds_needed` would show a difference
RESAMPLES = 9999
DRAWS = 2000  # of seeds and images: each costs more, and the tail to be read off is the 50 outermost
MOST_SEEDS = 1000  # nobody runs more
ROUNDING = 1e-6  # of the larger value: scores are float32, whose last digit is no difference


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. `std`, `low` and `high` are None where one value is all there is."""

    mean: float
    std: float | None
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its interval and the two-sided p-value of "no difference" (paired t); None where n < 2."""

    estimate: Estimate
    p: float | None
    values: tuple[float, ...] = ()  # the differences, one per pair

    @property
    def p_permutation(self) -> float | None:
        return permutation_p(self.values)

    @property
    def effect(self) -> float | None:
        return cohens_d(self.values)

    @property
    def superiority(self) -> float | None:
        return superiority(self.values)

    @property
    def bootstrap(self) -> tuple[float, float] | None:
        return bootstrap_interval(self.values)


def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The half width of a two-sided interval, in standard errors, of Student's t with `df` degrees of freedom."""
    return float(stdtrit(df, 0.5 + confidence / 2))


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean, standard deviation and t interval of independent values.

    mean +- t(n - 1) * s / sqrt(n), with s^2 = sum (x - mean)^2 / (n - 1) (Student 1908, doi:10.2307/2331554).

    Args:
        values: one per seed, at least one.
        confidence: of the interval, 0 to 1.

    Raises:
        ValueError: there is no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an estimate needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1, confidence) * std / math.sqrt(n)
    return Estimate(mean, std, n, mean - half, mean + half)


def negated(value: Estimate) -> Estimate:
    """The estimate of minus the quantity."""
    low = None if value.high is None else -value.high
    high = None if value.low is None else -value.low
    return Estimate(-value.mean, value.std, value.n, low, high)


def paired_difference(
    first: Mapping[Any, float], second: Mapping[Any, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """`first - second`, over the pairs that both have, by a paired t-test.

    Pairing removes what a seed does to both (which images, which order), so the interval is narrower than that of two
    separate means. The test is t = mean / (s / sqrt(n)) with n - 1 degrees of freedom. Where all differences are equal, t
    does not exist and the exact sign-flip permutation p-value 2^(1 - n) stands in (1 where the differences are all 0).

    Args:
        first, second: value by what makes a pair, such as a seed; sortable.
        confidence: of the interval, 0 to 1.

    Returns:
        None where no pair is shared; p is None where one is, or where a value is not finite.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    values = tuple(first[pair] - second[pair] for pair in shared)
    rounding = ROUNDING * max(abs(side[pair]) for side in (first, second) for pair in shared)
    if max(values) - min(values) <= rounding:  # else the last digit would pass for how little they vary
        mean = math.fsum(values) / len(values)
        values = (0.0 if abs(mean) <= rounding else mean,) * len(values)
    difference = estimate(values, confidence)
    if difference.std is None or not math.isfinite(difference.std):
        return Difference(difference, None, values)
    if _equal(difference):
        return Difference(difference, 1.0 if abs(difference.mean) <= 1e-12 else 2.0 ** (1 - difference.n), values)
    t = difference.mean / (difference.std / math.sqrt(difference.n))
    return Difference(difference, float(2 * stdtr(difference.n - 1, -abs(t))), values)


def unpaired_difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Difference | None:
    """`first - second` of independent values, by Welch's t-test (1947, doi:10.1093/biomet/34.1-2.28).

    None of fewer than two each. Where neither varies there is no t: the difference stands without a p-value.
    """
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2 or not np.isfinite([*first, *second]).all():
        return None
    mean = float(np.mean(first) - np.mean(second))
    std = float(np.sqrt(np.var(first, ddof=1) + np.var(second, ddof=1)))  # of one difference of two
    if std <= 1e-12:
        return Difference(Estimate(mean, 0.0, min(len(first), len(second)), mean, mean), None)
    tested = ttest_ind(first, second, equal_var=False)
    ends = tested.confidence_interval(confidence)
    return Difference(
        Estimate(mean, std, min(len(first), len(second)), float(ends.low), float(ends.high)), float(tested.pvalue)
    )


def bootstrap_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean (Efron 1979, doi:10.1214/aos/1176344552), RESAMPLES draws of a fixed seed.

    Of few values it is too narrow (by the factor sqrt((n - 1) / n) and by t / z): at three seeds it covers the truth about
    three times in four. It assumes no normal distribution, and so stands beside the t interval, not in its place.

    Returns:
        Its ends; None of fewer than two values, or where one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[drawn].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def hierarchical_interval(
    values: Sequence[NDArray[Any]], *, same_images: bool, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean score, with the seeds and the test images both drawn anew.

    Each of DRAWS draws (of a fixed seed) takes n - 1 of the n seeds and N of the N images, with replacement. One seed fewer
    than there are, since drawing all makes their part of the variance too small by (n - 1) / n (Rao and Wu 1988,
    doi:10.1080/01621459.1988.10478591); a single seed stays, and the interval is that of the images alone. Where all seeds
    answered the same images, one drawing of images serves all, or else what is hard for every seed would be averaged away:
    rows and columns are drawn separately, which is a little too wide (Owen 2007, doi:10.1214/07-AOAS122). Of few seeds the
    quantiles are too near, as those of `bootstrap_interval`.

    Images to which the seeds gave the same pattern of scores are exchangeable, so what is drawn is not images but how often
    each pattern occurs among N of them: one multinomial draw over at most 2^n patterns.

    Args:
        values: [N] for each seed, a score of each image: right 1 or wrong 0, or the difference of two such.
        same_images: whether position i is the same image for every seed.
        confidence: of the interval, 0 to 1.

    Returns:
        Its ends; None where a seed has no image.
    """
    draws = np.random.default_rng(0)
    if not values or min(map(len, values)) == 0:
        return None
    groups = [np.stack(values, axis=1)] if same_images else [each[:, None] for each in values]  # [N, n], or n of [N, 1]
    means = np.concatenate([_resampled(group, draws) for group in groups], axis=1)  # [DRAWS, n]
    taken = draws.integers(len(values), size=(DRAWS, max(1, len(values) - 1)))
    found = np.take_along_axis(means, taken, axis=1).mean(axis=1)
    low, high = np.quantile(found, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _resampled(scores: NDArray[Any], draws: np.random.Generator) -> NDArray[np.float64]:
    """Mean of each column [DRAWS, n] over rows drawn with replacement out of [N, n]."""
    patterns, counts = np.unique(scores, axis=0, return_counts=True)
    drawn = draws.multinomial(len(scores), counts / len(scores), size=DRAWS)
    means: NDArray[np.float64] = drawn @ patterns.astype(np.float64) / len(scores)
    return means


def permutation_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired permutation test: under "no difference" each difference could have had the other sign.

    Fisher 1935, The Design of Experiments, section 21. Exact up to 13 pairs, beyond by RESAMPLES draws of a fixed seed. It
    cannot fall below 2^(1 - n): with fewer than six pairs never below .05, whatever the data.

    Returns:
        None of fewer than two differences, or where one is not finite.
    """
    from scipy.stats import permutation_test

    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    tested = permutation_test(
        (np.asarray(differences),),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def cohens_d(differences: Sequence[float]) -> float | None:
    """Standardised paired difference, mean / standard deviation (d_z of Cohen 1988; Lakens 2013, doi:10.3389/fpsyg.2013.00863).

    In units of how much the difference varies from seed to seed. From few seeds it is itself very uncertain, and too large on
    average. Infinite where all differences are equal and not 0; None of fewer than two.
    """
    if len(differences) < 2:
        return None
    value = estimate(differences)
    assert value.std is not None
    if _equal(value):
        return 0.0 if abs(value.mean) <= 1e-12 else math.copysign(math.inf, value.mean)
    return value.mean / value.std


def superiority(differences: Sequence[float]) -> float | None:
    """Share of pairs in which the first was better, ties counting half: P(A > B) of Bouthillier et al. 2021 (arXiv 2103.03098).

    An estimate of how often A beats B when both are trained once more with the same seed. None of no pairs.
    """
    if not differences:
        return None
    return math.fsum(1.0 if each > 0 else 0.5 if each == 0 else 0.0 for each in differences) / len(differences)


def seeds_needed(effect: float, std: float, comparisons: int = 1, power: float = POWER, level: float = LEVEL) -> int | None:
    """Pairs with which a paired t-test would show a true mean difference of `effect` with the given power.

    The smallest n at which the noncentral t distribution with n - 1 degrees of freedom and noncentrality
    effect / (std / sqrt(n)) puts `power` beyond the two-sided critical values of level / comparisons (Cohen 1988, chapter 2;
    dividing by the number of comparisons is Bonferroni's, the hardest step of Holm's).

    Args:
        effect: the difference to be shown; its sign does not matter.
        std: of the paired differences. Known from few seeds only, so the answer is a rough one.

    Returns:
        At least 2; None where more than MOST_SEEDS would be needed or the values allow no answer.
    """
    if not (math.isfinite(effect) and math.isfinite(std)) or effect == 0:
        return None
    if std == 0:
        return 2

    def enough(n: int) -> bool:
        critical = float(stdtrit(n - 1, 1 - level / comparisons / 2))
        beyond = abs(effect) / std * math.sqrt(n)
        wrong_side = float(np.nan_to_num(nctdtr(n - 1, beyond, -critical)))  # nan where it is too small for scipy 1.17
        return float(1 - nctdtr(n - 1, beyond, critical)) + wrong_side >= power

    return next((n for n in range(2, MOST_SEEDS + 1) if enough(n)), None)


def _equal(value: Estimate) -> bool:
    """Whether all values are equal but for rounding."""
    return value.std is not None and value.std <= 1e-12 * max(1.0, abs(value.mean))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, in the order given (Holm 1979, www.jstor.org/stable/4615733).

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)): the chance of even one false claim among
    all m stays below the level, whatever their dependence.
    """
    m = len(p_values)
    corrected = [1.0] * m
    largest = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
