"""From runs to verdicts: which strategy each quadrant's data show to be best, which are as good, and which is cheapest.

A *place* is where strategies meet on equal terms: one quadrant (or dataset and size) and one model. In it each strategy is
a *cell*: everything but the optimizer's settings and the seed. The settings of a cell are chosen on the validation split;
the test split only reports, and only of the chosen.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.identity import NOT_IN_THE_RESULT, ROOT_IS_THE_DATA, essential
from fourfold.study.metric import Metric, metric_of
from fourfold.study.results import Quadrant, Result, Unfinished, collect, flat, unfinished
from fourfold.study.statistics import Difference, Estimate, estimate, holm, negated, paired_difference

LEVEL = 0.05  # of the corrected p-values that a winner needs

SEED_KEYS = ("seed", "dataset.split_seed")
SIMILARITIES = ("similar", "middle", "different")
SIZES = ("small", "large")


@dataclass(frozen=True)
class Setting:
    """One point of a cell's grid of optimizer settings, run with one or more seeds."""

    lr: float
    swept: dict[str, Any]  # the optimizer keys that vary in this cell, lr among them
    runs: tuple[Result, ...]  # one per seed, by seed
    val: Estimate
    test: Estimate

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def label(self) -> str:
        return ", ".join(f"{key} {_number(value)}" for key, value in self.swept.items()) or f"lr {_number(self.lr)}"


@dataclass(frozen=True)
class Cell:
    """One strategy in one place."""

    strategy: str  # the label: the strategy's name, and what else sets this cell apart
    name: str  # the strategy's name alone
    pretrained: bool
    settings: tuple[Setting, ...]  # by learning rate
    chosen: Setting  # on validation
    edge: str | None  # low | high: the chosen learning rate is the end of a grid of two or more

    @property
    def params_trainable(self) -> int:
        return max(run.params_trainable for run in self.chosen.runs)

    @property
    def params_total(self) -> int:
        return max(run.params_total for run in self.chosen.runs)

    @property
    def seconds(self) -> float:
        """Mean over the chosen runs, of one run."""
        return math.fsum(run.seconds for run in self.chosen.runs) / len(self.chosen.runs)

    @property
    def cost(self) -> tuple[float, float]:
        """For "cheapest": trainable parameters, then seconds (which a busy machine blurs)."""
        return self.params_trainable, self.seconds


@dataclass(frozen=True)
class Rival:
    """A strategy against the one that validation chose. A positive difference is better, whatever the metric."""

    strategy: str
    difference: Difference | None  # on test, rival minus chosen, paired by seed
    p_holm: float | None
    status: str  # tied | behind | ahead | unknown (fewer than two shared seeds)


@dataclass(frozen=True)
class Textbook:
    """How the textbook's choice did. Regret: what it lost against the choice by validation, in the metric's unit."""

    name: str
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


@dataclass(frozen=True)
class Verdict:
    """What the data of one place show, and no more."""

    best: str  # by mean validation; a choice, not a claim
    rivals: tuple[Rival, ...]  # all the others, nearest first
    winner: str | None  # the claim: every other is behind, after Holm's correction
    contenders: tuple[str, ...]  # best and all that are not shown to be behind it; empty where one seed shows nothing
    cheapest: str | None  # of the contenders
    textbook: Textbook | None
    transfer: Transfer | None


@dataclass(frozen=True)
class Place:
    """One row of the study's table: a quadrant (or dataset and size) with one model."""

    quadrant: Quadrant | None
    dataset: str
    train_size: str
    model: str
    variant: tuple[str, ...]  # what else of the dataset tells it from places of the same name, as "key=value"
    metric: Metric
    cells: tuple[Cell, ...]
    verdict: Verdict

    def cell(self, strategy: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.strategy == strategy), None)

    @property
    def title(self) -> str:
        if self.quadrant is None:
            return f"{self.dataset} · {self.train_size}"
        if self.quadrant.similarity and self.quadrant.size:
            return f"{self.quadrant.similarity} · {self.quadrant.size}"
        return self.quadrant.name

    @property
    def chance(self) -> float | None:
        """Accuracy of always answering the most frequent class, where accuracy is the metric."""
        known = [run.chance for cell in self.cells for run in cell.chosen.runs if run.chance is not None]
        return max(known) if known and self.metric.name == "acc" else None


@dataclass(frozen=True)
class Study:
    """Everything below one folder, arranged."""

    name: str
    folder: Path
    results: tuple[Result, ...]
    unfinished: tuple[Unfinished, ...]
    places: tuple[Place, ...]  # similar to different, small to large
    strategies: tuple[str, ...]  # every cell's label: least trained first, the untransferred control last


def read_study(folder: Path) -> Study:
    """Read and arrange all runs at or below `folder`."""
    results = collect(folder)
    names = sorted({result.study for result in results})
    places = arrange(results)
    return Study(
        name=names[0] if len(names) == 1 else folder.resolve().name,
        folder=folder,
        results=tuple(results),
        unfinished=tuple(unfinished(folder)),
        places=places,
        strategies=_order(cell for place in places for cell in place.cells),
    )


def arrange(results: Iterable[Result]) -> tuple[Place, ...]:
    """Group runs into places, choose each cell's settings on validation, and compare on test."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        label = (result.quadrant and result.quadrant.name, result.dataset, result.train_size, result.model, result.task)
        groups.setdefault(label, []).append(result)
    apart = [(variant, runs) for group in groups.values() for variant, runs in _apart(group, _is_other_data).items()]
    return tuple(sorted((_place(variant, runs) for variant, runs in apart), key=_place_order))


def _place(variant: tuple[str, ...], runs: Sequence[Result]) -> Place:
    metric, first = metric_of(runs), runs[0]
    by_strategy: dict[str, list[Result]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    cells = [
        _cell(" ".join([strategy, *varied]), group, metric)
        for strategy, each in by_strategy.items()
        for varied, group in _apart(each, _is_other_training).items()
    ]
    order = _order(cells)
    cells.sort(key=lambda cell: order.index(cell.strategy))
    textbook = first.quadrant.textbook if first.quadrant else None
    return Place(
        quadrant=first.quadrant,
        dataset=first.dataset,
        train_size=first.train_size,
        model=first.model,
        variant=variant,
        metric=metric,
        cells=tuple(cells),
        verdict=judge(cells, metric, textbook),
    )


def _is_other_data(key: str, source: str) -> bool:
    """Whether runs that differ in this key saw different data, so that their scores do not compare."""
    if key == "dataset.root":
        return source in ROOT_IS_THE_DATA
    return key.startswith("dataset.") and not key.startswith("dataset.loader.") and _matters(key)


def _is_other_training(key: str, source: str) -> bool:
    """Whether runs that differ in this key are strategies to tell apart; optimizer settings are chosen among instead."""
    return not key.startswith(("optimizer.", "dataset.root")) and _matters(key)


def _matters(key: str) -> bool:
    left_out = (*NOT_IN_THE_RESULT, *SEED_KEYS)
    return not any(key == each or key.startswith(f"{each}.") for each in left_out)


def _apart(runs: Sequence[Result], tells: Callable[[str, str], bool]) -> dict[tuple[str, ...], list[Result]]:
    """Runs by whatever differs among them in the config keys that `tells` them apart; () where nothing does."""
    leaves = [flat(essential(run.config)) for run in runs]
    source = str(leaves[0].get("dataset.source"))
    varied = [key for key in _varying(leaves) if tells(key, source)]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for run, values in zip(runs, leaves, strict=True):
        variant = tuple(f"{key.removeprefix('freeze_strategy.')}={_number(values.get(key))}" for key in varied)
        groups.setdefault(variant, []).append(run)
    return groups


def _place_order(place: Place) -> tuple[Any, ...]:
    quadrant = place.quadrant
    similarity = quadrant.similarity if quadrant else None
    size = quadrant.size if quadrant else None
    return (
        SIMILARITIES.index(similarity) if similarity in SIMILARITIES else len(SIMILARITIES),
        SIZES.index(size) if size in SIZES else len(SIZES),
        quadrant.name if quadrant else "",
        place.dataset,
        [int(part) if part.isdigit() else 0 for part in place.train_size.split()[:1]],
        place.train_size,
        place.model,
        place.variant,
    )


def _order(cells: Iterable[Cell]) -> tuple[str, ...]:
    weight = {cell.strategy: (not cell.pretrained, cell.params_trainable / max(cell.params_total, 1)) for cell in cells}
    return tuple(sorted(weight, key=lambda strategy: (*weight[strategy], strategy)))


def _varying(mappings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all `mappings`."""
    keys = sorted({key for mapping in mappings for key in mapping})
    return [key for key in keys if len({json.dumps(mapping.get(key)) for mapping in mappings}) > 1]


def _cell(label: str, runs: Sequence[Result], metric: Metric) -> Cell:
    swept = _varying([dict(run.optimizer) for run in runs])
    groups: dict[str, dict[int, Result]] = {}
    for run in runs:
        setting = json.dumps([run.optimizer.get(key) for key in swept])
        groups.setdefault(setting, {})[run.seed] = run
    settings = [_setting([by_seed[seed] for seed in sorted(by_seed)], swept, metric) for by_seed in groups.values()]
    settings.sort(key=lambda setting: (setting.lr, setting.label))
    chosen = choose(settings, metric)
    rates = sorted({setting.lr for setting in settings})
    edge = None if len(rates) < 2 else {rates[0]: "low", rates[-1]: "high"}.get(chosen.lr)
    return Cell(label, runs[0].strategy, runs[0].pretrained, tuple(settings), chosen, edge)


def _setting(runs: Sequence[Result], swept: Sequence[str], metric: Metric) -> Setting:
    first = runs[0].optimizer
    return Setting(
        lr=float(first["lr"]),
        swept={key: first.get(key) for key in sorted(swept, key=lambda key: (key != "lr", key))},
        runs=tuple(runs),
        val=estimate([run.val[metric.name] for run in runs]),
        test=estimate([run.test[metric.name] for run in runs]),
    )


def choose(settings: Sequence[Setting], metric: Metric) -> Setting:
    """The setting with the best mean validation metric; equal ones: the smaller learning rate. Test is not looked at.

    Only settings with as many seeds as the most complete one compete, so that one lucky seed, or the survivors of a rate
    that often diverges, cannot win against a full set.
    """
    most = max(len(setting.runs) for setting in settings)
    complete = [setting for setting in settings if len(setting.runs) == most]
    return max(complete, key=lambda setting: (_finite(metric.sign * setting.val.mean), -setting.lr))


def _finite(score: float) -> float:
    return score if math.isfinite(score) else -math.inf


def judge(cells: Sequence[Cell], metric: Metric, textbook: str | None = None) -> Verdict:
    """Compare the cells of one place on test, each at its chosen settings, paired by seed.

    The reference is the strategy with the best mean validation metric (equal ones: the cheaper). Another is *tied* with it
    when the 95 % interval of their difference includes 0 or the difference is under one point, else *behind* or *ahead*.
    A *winner* is claimed only where every other is behind with a Holm-corrected p below 0.05.
    """
    best = max(cells, key=lambda cell: (_finite(metric.sign * cell.chosen.val.mean), *(-cost for cost in cell.cost)))
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
        textbook=_textbook(textbook, best, rivals, cells, metric) if textbook else None,
        transfer=_transfer(cells, metric),
    )


def _contenders(best: Cell, rivals: Sequence[Rival]) -> tuple[str, ...]:
    if all(rival.status == "unknown" for rival in rivals):
        return ()
    return best.strategy, *(rival.strategy for rival in rivals if rival.status in ("tied", "ahead"))


def _rivals(best: Cell, others: Sequence[Cell], metric: Metric) -> tuple[Rival, ...]:
    differences = [compare(cell, best, metric) for cell in others]
    tested = {index: each.p for index, each in enumerate(differences) if each is not None and each.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    rivals = [
        Rival(cell.strategy, difference, corrected.get(index), status_of(difference, metric))
        for index, (cell, difference) in enumerate(zip(others, differences, strict=True))
    ]
    return tuple(sorted(rivals, key=lambda rival: -rival.difference.estimate.mean if rival.difference else math.inf))


def compare(first: Cell, second: Cell, metric: Metric) -> Difference | None:
    """`first - second` on test at their chosen settings, paired by seed, turned so that positive is better."""
    scores = [{run.seed: metric.sign * run.test[metric.name] for run in cell.chosen.runs} for cell in (first, second)]
    return paired_difference(scores[0], scores[1])


def status_of(difference: Difference | None, metric: Metric) -> str:
    """tied | behind | ahead, or unknown where fewer than two seeds are shared."""
    if difference is None or difference.p is None or difference.estimate.low is None or difference.estimate.high is None:
        return "unknown"
    value = difference.estimate
    if difference.estimate.low <= 0 <= difference.estimate.high or abs(value.mean) < metric.margin:
        return "tied"
    return "behind" if value.mean < 0 else "ahead"


def _textbook(name: str, best: Cell, rivals: Sequence[Rival], cells: Sequence[Cell], metric: Metric) -> Textbook:
    candidates = [cell for cell in cells if cell.name == name]
    if not candidates:
        return Textbook(name, None, "not run", None)
    if best in candidates:
        return Textbook(name, best.strategy, "chosen", None)
    cell = max(candidates, key=lambda cell: _finite(metric.sign * cell.chosen.val.mean))
    rival = next(rival for rival in rivals if rival.strategy == cell.strategy)
    return Textbook(name, cell.strategy, rival.status, negated(rival.difference.estimate) if rival.difference else None)


def _transfer(cells: Sequence[Cell], metric: Metric) -> Transfer | None:
    def preferred(group: list[Cell]) -> Cell:
        return max(group, key=lambda cell: _finite(metric.sign * cell.chosen.val.mean))

    scratch = [cell for cell in cells if not cell.pretrained]
    pretrained = [cell for cell in cells if cell.pretrained]
    if not scratch or not pretrained:
        return None
    control, transferred = preferred(scratch), preferred(pretrained)
    difference = compare(control, transferred, metric)
    words = {"behind": "helps", "tied": "no benefit", "ahead": "negative", "unknown": "unknown"}
    return Transfer(control.strategy, transferred.strategy, difference, words[status_of(difference, metric)])


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
