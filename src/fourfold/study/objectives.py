"""What a search looks for, by the names that metrics.jsonl has: `val/acc`, `val/loss`, `train/seconds`, ..."""

from collections.abc import Mapping
from typing import Any

from fourfold.config import ConfigError, RunConfig, nearest
from fourfold.scores import HEADLINE, sign


def names(config: RunConfig) -> tuple[str, ...]:
    """The objectives of a search: the given ones, or the metric that the runs monitor.

    Raises:
        ConfigError: an objective is of the test split, which may choose nothing.
    """
    for name in config.search.objectives:
        if name.startswith("test"):
            raise ConfigError(f"search.objectives={name} would choose on the test split: use val{name.removeprefix('test')}")
    if config.search.objectives:
        return tuple(config.search.objectives)
    monitor = config.trainer.monitor
    return (f"val/{HEADLINE[config.dataset.task]}" if monitor == "auto" else monitor,)


def directions(config: RunConfig) -> tuple[str, ...]:
    """`maximize` or `minimize` of each objective."""
    costs = ("params/", "train/")  # of which less is better
    return tuple(
        "minimize" if name.startswith(costs) or sign(name.rpartition("/")[2]) < 0 else "maximize" for name in names(config)
    )


def values_of(result: Mapping[str, Any], config: RunConfig) -> list[float]:
    """The objectives' values in a run's result.

    Raises:
        ConfigError: the run has measured no such thing.
    """
    measured = {f"val/{name}": value for name, value in result["metrics"]["val"].items()}
    measured |= {"train/loss": result["metrics"]["train"]["loss"], "train/seconds": result["seconds"]}
    measured |= {f"params/{name}": value for name, value in result["params"].items()}
    for name in names(config):
        if name not in measured:
            raise ConfigError(
                f"search.objectives={name} is not measured: choose of {', '.join(measured)}{nearest(name, measured)}"
            )
    return [float(measured[name]) for name in names(config)]
