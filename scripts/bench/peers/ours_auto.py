"""Fourfold with precision and memory format chosen by its probe, whose cost is part of the fit."""

import logging

from ours import AUTO, fit
from task import Clock, Task, drive


def faster(task: Task, lr: float, clock: Clock) -> float:
    return fit(task, lr, clock, *AUTO)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    drive(faster)
