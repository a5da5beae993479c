"""Optimizers by timm's names, over the groups of a freeze plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from fourfold.config import ConfigError, OptimizerConfig, nearest
from fourfold.zoo import create_optimizer_v2, list_optimizers

if TYPE_CHECKING:
    from fourfold.freeze import Group


@dataclass(frozen=True)
class Exact:
    """How the exact linear probe is solved; see `exact`."""

    l2_max: float
    l2_min: float
    max_iter: int
    tolerance: float


class Lbfgs(Optimizer):
    """Stands for the solver of `exact`, which remembers nothing from one fit to the next. A step by itself moves nothing."""

    def __init__(self, groups: list[dict[str, Any]], settings: Exact) -> None:
        super().__init__(groups, {})
        self.settings = settings

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: a dry run measures what a step costs before it is solved for."""


def create(net: nn.Module, groups: Sequence["Group"], config: OptimizerConfig) -> Optimizer:
    """An optimizer that holds the parameters of `groups` and no others.

    Each group's `initial_lr` is its own peak rate; `set_factor` multiplies it.

    Raises:
        ConfigError: timm does not know the optimizer, or it refuses an argument.
    """
    if config.name == "lbfgs":
        try:
            settings = Exact(**config.kwargs)
        except TypeError as error:
            raise ConfigError(
                f"optimizer.kwargs={config.kwargs} does not fit lbfgs ({error}): give it l2_max, l2_min, max_iter and tolerance"
            ) from error
        return Lbfgs([_entry(net, group, config) for group in groups], settings)
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        raise ConfigError(
            f"optimizer.name={config.name} is not one of timm's optimizers{nearest(config.name, known)} "
            f"(allowed: {', '.join(sorted(known))})"
        )
    try:
        optimizer = create_optimizer_v2(
            [_entry(net, group, config) for group in groups],
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **config.kwargs,
        )
    except TypeError as error:
        refused = next((name for name in config.kwargs if f"'{name}'" in str(error)), "NAME")
        raise ConfigError(
            f"optimizer.kwargs={config.kwargs} does not fit {config.name} ({error}): leave out what it does not take, or "
            f"remove it with ~optimizer.kwargs.{refused}"
        ) from error
    return optimizer


def extend(optimizer: Optimizer, net: nn.Module, groups: Sequence["Group"], config: OptimizerConfig) -> None:
    """Let further groups learn; the state of those that learn already is kept."""
    for group in groups:
        optimizer.add_param_group(_entry(net, group, config))


def _entry(net: nn.Module, group: "Group", config: OptimizerConfig) -> dict[str, Any]:
    lr = config.lr * group.lr_mult
    return {
        "params": [net.get_parameter(name) for name in group.params],
        "name": group.name,
        "lr": lr,
        "initial_lr": lr,
        "weight_decay": config.weight_decay if group.decay else 0.0,
    }


def set_factor(optimizer: Optimizer, factor: float) -> None:
    """Every group learns at `factor` times its own peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
