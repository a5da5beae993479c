"""One strategy in one place: its grid of optimizer settings, and the one of them that validation chooses."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.study.metric import Metric
from fourfold.study.results import Result
from fourfold.study.statistics import Estimate, estimate

Pair = tuple[int, str]


def pair(run: Result) -> Pair:
    """What two runs must share to be compared as a pair: the seed, and the images that it gave them."""
    return run.seed, run.manifest_hash or ""


@dataclass(frozen=True)
class Setting:
    """One point of a cell's grid of optimizer settings, run with one or more seeds."""

    lr: float
    swept: dict[str, Any]  # the optimizer keys that vary in this cell, lr among them
    runs: tuple[Result, ...]  # one per pair of seed and images, by seed
    val: Estimate
    test: Estimate

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def label(self) -> str:
        return ", ".join(f"{key} {number(value)}" for key, value in self.swept.items()) or f"lr {number(self.lr)}"


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


def form(label: str, runs: Sequence[Result], metric: Metric) -> Cell:
    """A cell of runs that differ in the optimizer's settings and the seed alone."""
    swept = varying([dict(run.optimizer) for run in runs])
    groups: dict[str, dict[Pair, Result]] = {}
    for run in runs:
        setting = json.dumps([run.optimizer.get(key) for key in swept])
        groups.setdefault(setting, {})[pair(run)] = run
    settings = [_setting([by_pair[each] for each in sorted(by_pair)], swept, metric) for by_pair in groups.values()]
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
    return max(complete, key=lambda setting: (finite(metric.sign * setting.val.mean), -setting.lr))


def finite(score: float) -> float:
    """For comparing: what is not finite is worse than anything else."""
    return score if math.isfinite(score) else -math.inf


def by_weight(cells: Iterable[Cell]) -> tuple[str, ...]:
    """The strategies of `cells`: least trained first, those that are not pretrained last."""
    weight = {cell.strategy: (not cell.pretrained, cell.params_trainable / max(cell.params_total, 1)) for cell in cells}
    return tuple(sorted(weight, key=lambda strategy: (*weight[strategy], strategy)))


def varying(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all `mappings`."""
    keys = sorted(set().union(*mappings))
    return [key for key in keys if not _alike([mapping.get(key) for mapping in mappings])]


def _alike(values: Sequence[Any]) -> bool:
    """Whether all values are written the same; most are equal, which is seen faster."""
    first, kind = values[0], type(values[0])
    return all(type(value) is kind and value == first for value in values) or len({json.dumps(value) for value in values}) == 1


def number(value: Any) -> str:
    """A value of the configuration as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
