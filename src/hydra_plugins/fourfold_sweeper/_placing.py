"""Cells that are placed before they run: what `quadrant=auto` means in each, and `search.warm_start=transferability`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold import auto, imports
from fourfold.advice import in_order
from fourfold.compose import to_run_config, user_dirs
from fourfold.config import RunConfig
from fourfold.placement import FILE, Placement
from fourfold.study.space import Cell, narrowed
from fourfold.study.trials import TrialView

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper

BY_TRANSFERABILITY = "transferability"  # of search.warm_start

log = logging.getLogger(__name__)

Place = Callable[[Cell], tuple[RunConfig, Placement | None]]


@dataclass(frozen=True)
class Order:
    """In which order the models and strategies of a sweep come, by what was measured before training."""

    cells: tuple[Cell, ...]
    ranks: dict[str, int]  # cell -> rank of its model and strategy, from 0, on its target
    targets: dict[str, str]  # cell -> its target
    kinds: int  # models and strategies on one target, at most
    left_out: int  # runs
    seconds: float  # that measuring took


def placing(sweeper: "FourfoldSweeper", folder: Path, *, measuring: bool) -> Place:
    """How a cell is placed: with the seed of the study, so that its seeds are not placed apart.

    Args:
        sweeper: The sweep's.
        folder: The study's.
        measuring: Whether what nobody has measured yet is measured.
    """

    def place(cell: Cell) -> tuple[RunConfig, Placement | None]:
        with imports.loading("torch"):
            from fourfold.place import already, placed

        words = [word for word in cell.fixed if not word.startswith("seed=")]
        composed = sweeper.jobs.load_sweep_config(sweeper.config, words)
        config, dirs = to_run_config(composed), user_dirs(composed.hydra)
        found = already(config, dirs, folder / FILE)
        return config, placed(config, dirs, folder / FILE) if found is None and measuring else found

    return place


def chosen(cells: Sequence[Cell], place: Place) -> list[Cell]:
    """Cells in which `quadrant=auto` has become the quadrant, the strategy and the rates of the place."""
    return [_chosen(cell, place) if auto.asked(cell.fixed) else cell for cell in cells]


def _chosen(cell: Cell, place: Place) -> Cell:
    config, placement = place(cell)
    if placement is None:
        return cell
    choice = auto.choose(placement)
    words = auto.written(cell.fixed, choice, config.optimizer.lr, tuple(cell.space))
    log.info("%s: %s", cell.name, auto.told(placement, choice, words))
    low, high = (config.optimizer.lr * each for each in choice.rates)
    return replace(cell, fixed=tuple(words), space=narrowed(cell.space, auto.LR, low, high))


def ordered(cells: Sequence[Cell], place: Place, keep: int | None) -> Order | None:
    """Cells with the most promising models and strategies first, and without those that are not kept.

    On each target, models come by the LogME of their features, and the strategies of a model as the embedded study speaks for
    them in the quadrant where the model sees the target; those that it did not try come after. Seeds, rates and whatever else
    is swept stay together.

    Args:
        cells: Of a sweep.
        place: Where each lies.
        keep: Models and strategies that are kept on each target; None keeps all.

    Returns:
        None where something has not been measured.
    """
    targets: dict[str, dict[tuple[str, str], tuple[float, int]]] = {}
    kinds: list[tuple[str, tuple[str, str]]] = []
    measured: dict[tuple[str, str], float] = {}
    for cell in cells:
        config, placement = place(cell)
        if placement is None:
            return None
        target, kind = repr(config.dataset), (repr(config.model), config.freeze_strategy.name)
        measured[target, kind[0]] = placement.seconds
        known = in_order(placement.similarity, placement.size.nearest(placement.levels)) if placement.similarity else ()
        position = known.index(kind[1]) if kind[1] in known else len(known)
        targets.setdefault(target, {})[kind] = (-placement.logme, position)
        kinds.append((target, kind))
    best_first = {target: sorted(found, key=lambda kind: found[kind]) for target, found in targets.items()}
    ranks = [best_first[target].index(kind) for target, kind in kinds]
    order = sorted(range(len(cells)), key=ranks.__getitem__)
    kept = [i for i in order if keep is None or ranks[i] < keep]
    return Order(
        cells=tuple(cells[i] for i in kept),
        ranks={cells[i].name: ranks[i] for i in kept},
        targets={cells[i].name: kinds[i][0] for i in kept},
        kinds=max(map(len, best_first.values())),
        left_out=sum(cells[i].budget for i in order) - sum(cells[i].budget for i in kept),
        seconds=sum(measured.values()),
    )


def saving(order: Order, trials: Sequence[TrialView], sign: int) -> str | None:
    """What the order was worth, in one sentence: where the best run of each target stood in it, and what was left out.

    Args:
        order: Of the sweep.
        trials: Its trials.
        sign: 1 where a larger value is better, else -1.

    Returns:
        None before any run has ended with a value.
    """
    ended = [trial for trial in trials if trial.value is not None and trial.seconds is not None and trial.cell in order.ranks]
    if not ended:
        return None
    best: dict[str, TrialView] = {}
    for trial in sorted(ended, key=lambda trial: sign * (trial.value or 0.0)):
        best[order.targets[trial.cell]] = trial
    first = {target: order.ranks[trial.cell] for target, trial in best.items()}
    spent = sum(trial.seconds or 0.0 for trial in ended)
    later = sum(trial.seconds or 0.0 for trial in ended if order.ranks[trial.cell] > first[order.targets[trial.cell]])
    numbers = ", ".join(str(rank + 1) for target, rank in sorted(first.items()))
    whose = "the best of them is of number" if len(best) == 1 else f"the best of each of the {len(best)} targets are of numbers"
    text = (
        f"search.warm_start=transferability: measuring took {order.seconds:.1f} s, the runs {spent:.1f} s; {whose} {numbers} "
        f"of {order.kinds} models and strategies in the order that was measured, and what came after took {later / spent:.0%} "
        "of the time"
    )
    if order.left_out:
        saved = order.left_out * spent / len(ended) - order.seconds
        text += f"; {order.left_out} runs were left out, which at {spent / len(ended):.1f} s each saved about {saved:.0f} s"
    return text
