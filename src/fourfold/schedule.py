"""The factor on every learning rate, as a pure function of where the run is.

Nothing is remembered between steps, so a resumed run needs no scheduler state, groups that join later follow the same
factor, and a group's own multiplier survives every schedule.
"""

import math
from collections.abc import Sequence

from fourfold.config import SchedulerConfig


def factor(config: SchedulerConfig, step: int, steps_per_epoch: int, epochs: int, scores: Sequence[float]) -> float:
    """The factor at optimizer step `step` (from 0) of `epochs * steps_per_epoch`.

    Args:
        config: The schedule.
        step: Optimizer steps made so far.
        steps_per_epoch: Optimizer steps of one epoch.
        epochs: Epochs of the whole run.
        scores: Monitored results of the validations so far, higher is better; only `plateau` looks at them.

    Returns:
        A number in (0, 1] that multiplies each group's own peak rate (0 is reached only at the very end of a cosine).
    """
    total = epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return config.min_factor + (1 - config.min_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.name == "step":
        passed = sum(step >= milestone * total for milestone in config.milestones)
        return max(config.min_factor, config.gamma**passed)
    return max(config.min_factor, config.gamma ** drops(scores, config.patience))


def drops(scores: Sequence[float], patience: int) -> int:
    """How often a plateau scheduler has lowered the rate: once for every `patience + 1` validations without a gain."""
    best, waited, count = -math.inf, 0, 0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
            if waited > patience:
                waited, count = 0, count + 1
    return count
