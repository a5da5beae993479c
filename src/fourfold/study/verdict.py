"""What the data of one place show: who is best, who is tied, the cheapest of those, what following advice costs, transfer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.study.cells import Cell, finite, pair
from fourfold.study.metric import Metric
from fourfold.study.statistics import LEVEL, Difference, Estimate, holm, negated, paired_difference, seeds_needed


@dataclass(frozen=True)
class Rival:
    """A strategy against the one that validation chose. A positive difference is better, whatever the metric."""

    strategy: str
    difference: Difference | None  # on test, rival minus chosen, paired by seed and images
    p_holm: float | None
    status: str  # tied | behind | ahead | unknown (fewer than two pairs)
    comparisons: int  # that the correction was for

    def seeds_needed(self, margin: float) -> int | None:
        """Pairs that would show a difference as large as the one seen, but no smaller than `margin`; see `statistics`."""
        value = self.difference.estimate if self.difference else None
        if value is None or value.std is None:
            return None
        return seeds_needed(max(abs(value.mean), margin), value.std, self.comparisons)


@dataclass(frozen=True)
class Advice:
    """How a strategy named beforehand did. Regret: what it lost against the choice by validation, in the metric's unit."""

    name: str  # of the strategy
    strategy: str | None  # the cell that ran it; None: the study did not
    status: str  # chosen | tied | behind | ahead | unknown | not run
    regret: Estimate | None


@dataclass(frozen=True)
class Transfer:
    """What pretraining was worth: training from scratch against the pretrained strategy that validation prefers."""

    scratch: str
    pretrained: str
    difference: Difference | None  # scratch minus pretrained; positive: scratch is better
    status: str  # helps | no benefit | negative | unknown

    @property
    def flagged(self) -> bool:
        """Whether negative transfer is to be warned of: from scratch is at least as good on average, shown to be so or not."""
        return self.difference is not None and self.status != "unknown" and self.difference.estimate.mean >= 0


@dataclass(frozen=True)
class Verdict:
    """What the data of one place show, and no more."""

    best: str  # by mean validation; a choice, not a claim
    rivals: tuple[Rival, ...]  # all the others, nearest first
    winner: str | None  # the claim: every other is behind, after Holm's correction
    contenders: tuple[str, ...]  # best and all that are not shown to be behind it; empty where one seed shows nothing
    cheapest: str | None  # of the contenders
    textbook: Advice | None
    predicted: Advice | None  # by where the data were measured to lie; see `placement.Placement.suggested`
    transfer: Transfer | None


def judge(cells: Sequence[Cell], metric: Metric, textbook: str | None = None, predicted: str | None = None) -> Verdict:
    """Compare the cells of one place on test, each at its chosen settings, paired by seed and images.

    The reference is the strategy with the best mean validation metric (equal ones: the cheaper). Another is *tied* with it
    when the 95 % interval of their difference includes 0 or the difference is under one point, else *behind* or *ahead*.
    A *winner* is claimed only where every other is behind with a Holm-corrected p below 0.05.
    """
    best = max(cells, key=lambda cell: (finite(metric.sign * cell.chosen.val.mean), *(-cost for cost in cell.cost)))
    rivals = _rivals(best, [cell for cell in cells if cell is not best], metric)
    shown = bool(rivals) and all(rival.status == "behind" and (rival.p_holm or 0.0) < LEVEL for rival in rivals)
    contenders = _contenders(best, rivals)
    return Verdict(
        best=best.strategy,
        rivals=rivals,
        winner=best.strategy if shown else None,
        contenders=contenders,
        cheapest=min((cell for cell in cells if cell.strategy in contenders), key=lambda cell: cell.cost).strategy
        if contenders
        else None,
        textbook=_advice(textbook, best, rivals, cells, metric) if textbook else None,
        predicted=_advice(predicted, best, rivals, cells, metric) if predicted else None,
        transfer=_transfer(cells, metric),
    )


def _contenders(best: Cell, rivals: Sequence[Rival]) -> tuple[str, ...]:
    if all(rival.status == "unknown" for rival in rivals):
        return ()
    return best.strategy, *(rival.strategy for rival in rivals if rival.status in ("tied", "ahead"))


def _rivals(best: Cell, others: Sequence[Cell], metric: Metric) -> tuple[Rival, ...]:
    differences = [compare(cell, best, metric) for cell in others]
    corrected = _corrected([each.p if each else None for each in differences])
    comparisons = sum(p is not None for p in corrected)
    rivals = [
        Rival(cell.strategy, difference, corrected[index], status_of(difference, metric), comparisons)
        for index, (cell, difference) in enumerate(zip(others, differences, strict=True))
    ]
    return tuple(sorted(rivals, key=lambda rival: -rival.difference.estimate.mean if rival.difference else math.inf))


def permutation_p_values(rivals: Sequence[Rival]) -> dict[str, float | None]:
    """Of the paired permutation test, by strategy, with Holm's correction: what remains without any assumption but pairing."""
    corrected = _corrected([rival.difference.p_permutation if rival.difference else None for rival in rivals])
    return {rival.strategy: p for rival, p in zip(rivals, corrected, strict=True)}


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    known = {index: p for index, p in enumerate(p_values) if p is not None}
    told = dict(zip(known, holm(list(known.values())), strict=True))
    return [told.get(index) for index in range(len(p_values))]


def compare(first: Cell, second: Cell, metric: Metric) -> Difference | None:
    """`first - second` on test at their chosen settings, paired by seed and images, turned so that positive is better."""
    scores = [{pair(run): metric.sign * run.test[metric.name] for run in cell.chosen.runs} for cell in (first, second)]
    return paired_difference(scores[0], scores[1])


def status_of(difference: Difference | None, metric: Metric) -> str:
    """tied | behind | ahead, or unknown where fewer than two seeds are shared."""
    if difference is None or difference.p is None or difference.estimate.low is None or difference.estimate.high is None:
        return "unknown"
    value = difference.estimate
    if difference.estimate.low <= 0 <= difference.estimate.high or abs(value.mean) < metric.margin:
        return "tied"
    return "behind" if value.mean < 0 else "ahead"


def _advice(name: str, best: Cell, rivals: Sequence[Rival], cells: Sequence[Cell], metric: Metric) -> Advice:
    candidates = [cell for cell in cells if cell.name == name]
    if not candidates:
        return Advice(name, None, "not run", None)
    if best in candidates:
        return Advice(name, best.strategy, "chosen", None)
    cell = max(candidates, key=lambda cell: finite(metric.sign * cell.chosen.val.mean))
    rival = next(rival for rival in rivals if rival.strategy == cell.strategy)
    return Advice(name, cell.strategy, rival.status, negated(rival.difference.estimate) if rival.difference else None)


def _transfer(cells: Sequence[Cell], metric: Metric) -> Transfer | None:
    def preferred(group: list[Cell]) -> Cell:
        return max(group, key=lambda cell: finite(metric.sign * cell.chosen.val.mean))

    scratch = [cell for cell in cells if not cell.pretrained]
    pretrained = [cell for cell in cells if cell.pretrained]
    if not scratch or not pretrained:
        return None
    control, transferred = preferred(scratch), preferred(pretrained)
    difference = compare(control, transferred, metric)
    words = {"behind": "helps", "tied": "no benefit", "ahead": "negative", "unknown": "unknown"}
    return Transfer(control.strategy, transferred.strategy, difference, words[status_of(difference, metric)])
