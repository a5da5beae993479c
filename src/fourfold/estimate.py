"""What a whole run will take, reckoned from its first steps."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """The size of a run, and how long it lasts if nothing ends it early."""

    trainable: int  # parameters that ever learn
    total: int  # parameters
    epochs: int
    steps: int  # optimizer steps of an epoch
    eval_batches: int  # of one validation
    first_step_seconds: float  # the warm-up, which the others are not judged by
    step_seconds: float  # of one whole step, in the slowest of the phases that were tried
    eval_seconds: float  # of one whole batch
    seconds: float  # training, validations and the test of a whole run, without building its parts
    shared_seconds: float = 0.0  # besides, once for all runs of the set-up: computing the activations that they share


def training_seconds(starts: Sequence[int], epochs: int, first: float, last: float) -> float:
    """Seconds of training over all epochs.

    Args:
        starts: The epoch in which each phase begins, 0 first.
        epochs: Of the whole run.
        first: Seconds of an epoch in the first phase.
        last: Seconds of an epoch in the last phase. Those between count like it: it is the one in which most learns.
    """
    in_first = min(starts[1] if len(starts) > 1 else epochs, epochs)
    return in_first * first + (epochs - in_first) * last


def validations(epochs: int, every: int) -> int:
    """How many there are: one in `every` epochs, and one after the last."""
    return -(-epochs // every)
