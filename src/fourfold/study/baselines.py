"""Points that a cell of a search tries before its sampler is asked: the textbook's, and the best of an older study."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import identity
from fourfold.config import ConfigError, RunConfig
from fourfold.records import asdict
from fourfold.study.metric import metric_of
from fourfold.study.results import Result, collect
from fourfold.study.space import holds, to_overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

OLDER = 3  # points of an older study: more would leave a small budget little to find of its own

Space = Mapping[str, "BaseDistribution"]
Point = dict[str, str]  # key -> override


def textbook(config: RunConfig, space: Space) -> Point:
    """What a cell would run without a search, at the textbook's small learning rate (`optimizer.small_lr`).

    Args:
        config: The cell's, with nothing searched.
        space: What the cell searches; a value outside it is left to the sampler.
    """
    values = {key: _value(config, key) for key in space}
    if "optimizer.lr" in values:
        values["optimizer.lr"] = config.optimizer.small_lr
    return _point(values, space)


def older(folder: Path, config: RunConfig, space: Space) -> list[Point]:
    """The settings that were best on validation in an older study, in what is most like this cell there.

    They are points to measure again: nothing that another study has measured is compared with what this one measures.

    Args:
        folder: The older study's.
        config: The cell's, with nothing searched.
        space: What the cell searches.

    Raises:
        ConfigError: there is no finished run in `folder`.
    """
    runs = collect(folder)
    if not runs:
        raise ConfigError(f"search.warm_start={folder} holds no finished run: give the folder of an older study")
    metric = metric_of(runs)
    likeness = max(_likeness(run, config) for run in runs)
    alike = [run for run in runs if _likeness(run, config) == likeness and metric.name in run.val]
    best_first = sorted(alike, key=lambda run: metric.sign * run.val[metric.name], reverse=True)
    points = {repr(point): point for run in best_first if (point := _point(_settings(run, space), space))}
    return [*points.values()][:OLDER]


def first(*points: Point) -> tuple[Point, ...]:
    """Points in their order, each once, without empty ones."""
    return tuple({repr(sorted(point.items())): point for point in points if point}.values())


def _likeness(run: Result, config: RunConfig) -> tuple[bool, ...]:
    """Strategies differ most in what suits them, then places, models and data."""
    quadrant = (config.quadrant.similarity, config.quadrant.size)
    there = (run.quadrant.similarity, run.quadrant.size) if run.quadrant else (None, None)
    same_model = run.model == config.model.name
    return run.strategy == identity.strategy(asdict(config)), there == quadrant, same_model, run.dataset == config.dataset.name


def _settings(run: Result, space: Space) -> dict[str, Any]:
    return {key: _value(run.config, key) for key in space}


def _value(config: Any, key: str) -> Any:
    """The value of a dotted key; of a group, the name of its option. None where there is no such key."""
    for part in key.lstrip("+~").split("."):
        config = config.get(part) if isinstance(config, Mapping) else getattr(config, part, None)
    if is_dataclass(config):
        return getattr(config, "name", None)
    return config.get("name") if isinstance(config, Mapping) else config


def _point(values: Mapping[str, Any], space: Space) -> Point:
    texts: Sequence[str] = to_overrides(values)
    overrides = zip(values, texts, strict=True)
    return {key: text for key, text in overrides if values[key] is not None and holds(space, key, text)}
