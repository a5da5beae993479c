"""Which test images runs answered rightly, read back: what the drawing of these images adds to an interval over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fourfold.study.cells import Cell, Setting, pair
from fourfold.study.metric import Metric
from fourfold.study.results import UNREADABLE, Result
from fourfold.study.statistics import hierarchical_interval

ANSWERED = "acc"  # the metric that is a mean over images

Ends = tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """Of one run to the test images, in their order."""

    targets: NDArray[np.int32]
    right: NDArray[np.int8]  # 1 or 0


def answers(run: Result) -> Answers | None:
    """What the run kept; None where it kept nothing, or not what its score is the mean of."""
    try:
        with np.load(run.folder / "answers.npz") as kept:
            targets, predicted = kept["target"], kept["predicted"]
    except (OSError, BadZipFile, *UNREADABLE):
        return None
    right = (targets == predicted).astype(np.int8)
    if not len(right) or abs(right.mean() - run.test.get(ANSWERED, np.nan)) * len(right) > 0.5:
        return None
    return Answers(targets, right)


def mean_interval(setting: Setting, metric: Metric) -> Ends | None:
    """Of the mean test accuracy, over seeds and test images; None where a run's answers are not known."""
    return _interval([answers(run) for run in setting.runs], metric)


def difference_interval(first: Cell, second: Cell, metric: Metric) -> Ends | None:
    """Of `first - second` on test at their chosen settings, over pairs and test images, which the two of a pair share."""
    one, other = ({pair(run): run for run in cell.chosen.runs} for cell in (first, second))
    pairs = [(answers(one[key]), answers(other[key])) for key in sorted(one.keys() & other.keys())]
    return _interval([_difference(*each) for each in pairs], metric)


def _difference(first: Answers | None, second: Answers | None) -> Answers | None:
    if first is None or second is None or not np.array_equal(first.targets, second.targets):
        return None
    return Answers(first.targets, first.right - second.right)


def _interval(known: Sequence[Answers | None], metric: Metric) -> Ends | None:
    found = [each for each in known if each is not None]
    if metric.name != ANSWERED or not found or len(found) < len(known):
        return None
    same = all(np.array_equal(each.targets, found[0].targets) for each in found)
    return hierarchical_interval([each.right for each in found], same_images=same)
