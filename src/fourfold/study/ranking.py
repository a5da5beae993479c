"""Which strategy comes first over several places: mean ranks, Friedman's test, and Nemenyi's critical difference.

As Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 7:1-30), recommends for several datasets.
Quadrants of one study share backbone and, two by two, their images: they are fewer independent cases than they look.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.study.quadrants import Place
from fourfold.study.statistics import LEVEL

LEAST_PLACES = 3  # and three strategies: below, ranks say no more than the places themselves


@dataclass(frozen=True)
class Ranking:
    """Strategies by mean rank, best first; 1 is the best of a place, ties share the mean of their ranks."""

    strategies: tuple[str, ...]
    ranks: tuple[float, ...]
    places: int
    chi_square: float  # Friedman's, with one degree of freedom fewer than strategies
    p: float
    critical_difference: float  # Nemenyi's: mean ranks that lie further apart differ at LEVEL
    cliques: tuple[tuple[str, ...], ...]  # runs of neighbours that are not shown to differ, two or more each


def rank(places: Sequence[Place]) -> Ranking | None:
    """Rank the strategies that every place has, by mean test score at the settings chosen on validation.

    Friedman's chi-square approximation is rough below some ten places (Demšar 2006, section 3.2.2).

    Returns:
        None of fewer than three strategies in common or fewer than three places.
    """
    if not places:
        return None
    common = [cell.strategy for cell in places[0].cells if all(place.cell(cell.strategy) for place in places)]
    scores = np.array([[_score(place, strategy) for strategy in common] for place in places])
    return friedman(common, scores)


def friedman(names: Sequence[str], scores: np.ndarray) -> Ranking | None:
    """The ranking of `names` by scores [places, names], more is better; None of fewer than three of either.

    Friedman 1937 (doi:10.1080/01621459.1937.10503522), corrected for ties; Nemenyi 1963: q sqrt(k (k + 1) / (6 N)) with the
    upper quantile q of the studentized range of k groups and infinite degrees of freedom, divided by sqrt 2.
    """
    number, count = scores.shape if scores.ndim == 2 else (0, 0)
    if number < LEAST_PLACES or count < 3 or not np.isfinite(scores).all():
        return None
    from scipy.stats import friedmanchisquare, rankdata, studentized_range  # half a second

    means = rankdata(-scores, axis=1).mean(axis=0)
    told_apart = bool(np.ptp(scores, axis=1).any())
    chi_square, p = friedmanchisquare(*scores.T) if told_apart else (0.0, 1.0)
    quantile = float(studentized_range.ppf(1 - LEVEL, count, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(count * (count + 1) / (6 * number))
    order = [int(index) for index in np.argsort(means, kind="stable")]
    ranks = [float(means[index]) for index in order]
    ordered = [names[index] for index in order]
    return Ranking(
        tuple(ordered), tuple(ranks), number, float(chi_square), float(p), critical, _cliques(ordered, ranks, critical)
    )


def _cliques(names: Sequence[str], ranks: Sequence[float], critical: float) -> tuple[tuple[str, ...], ...]:
    spans = [
        (start, max(end for end in range(len(ranks)) if ranks[end] - ranks[start] <= critical)) for start in range(len(ranks))
    ]
    longest = [(a, b) for a, b in spans if b > a and not any(c <= a and b <= d and (c, d) != (a, b) for c, d in spans)]
    return tuple(tuple(names[a : b + 1]) for a, b in longest)


def _score(place: Place, strategy: str) -> float:
    cell = place.cell(strategy)
    return math.nan if cell is None else place.metric.sign * cell.chosen.test.mean
