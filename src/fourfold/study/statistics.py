"""What can be said from a few seeds: means with intervals, paired differences, and p-values corrected for their number.

Pure functions on numbers. Nothing here knows runs, strategies or files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


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
    """A mean paired difference with its interval and the two-sided p-value of "no difference"; None where n < 2."""

    estimate: Estimate
    p: float | None


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
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """`first - second`, over the seeds that both have, by a paired t-test.

    Pairing removes what a seed does to both (which images, which order), so the interval is narrower than that of two
    separate means. The test is t = mean / (s / sqrt(n)) with n - 1 degrees of freedom. Where all differences are equal, t
    does not exist and the exact sign-flip permutation p-value 2^(1 - n) stands in (1 where the differences are all 0).

    Args:
        first, second: value by seed.
        confidence: of the interval, 0 to 1.

    Returns:
        None where no seed is shared; p is None where one is, or where a value is not finite.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    difference = estimate([first[seed] - second[seed] for seed in shared], confidence)
    if difference.std is None or not math.isfinite(difference.std):
        return Difference(difference, None)
    if difference.std <= 1e-12 * max(1.0, abs(difference.mean)):  # equal but for rounding
        return Difference(difference, 1.0 if abs(difference.mean) <= 1e-12 else 2.0 ** (1 - difference.n))
    t = difference.mean / (difference.std / math.sqrt(difference.n))
    return Difference(difference, float(2 * stdtr(difference.n - 1, -abs(t))))


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
