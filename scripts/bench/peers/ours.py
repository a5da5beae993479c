"""Fourfold, as its command line runs it: each fit is a whole run, with its checkpoints, its test and its proof of freezing."""

import logging
import tempfile
from pathlib import Path

from task import BATCH, MOMENTUM, Clock, Task, drive

import fourfold.run  # noqa: F401  # now, since imports are no part of a fit
from fourfold.compose import compose
from fourfold.task import execute

AUTO = ("trainer.precision=auto", "trainer.channels_last=auto")


def fit(task: Task, lr: float, clock: Clock, *more: str) -> float:
    words = (
        "dataset=image_folder", f"dataset.root={task.root}", f"model={task.model}", f"model.image_size={task.size}",
        "model.crop_pct=1.0", f"freeze={task.strategy}", f"transform={'light' if task.augment else 'none'}", "optimizer=sgd",
        f"optimizer.lr={lr}", "optimizer.weight_decay=0", f"optimizer.momentum={MOMENTUM}", "scheduler=constant",
        f"trainer.epochs={task.epochs}", f"trainer.batch_size={BATCH}", "trainer.device=cpu", "trainer.threads=1",
        "trainer.progress=false", "logger=none", f"paths.cache={task.out}/cache",
        *([f"model.weights={task.weights}"] if task.weights else []),
    )  # fmt: skip
    with clock.running():
        result = execute(compose([*words, *more]), Path(tempfile.mkdtemp(dir=task.out)))
    return result["metrics"]["val"]["acc"]


if __name__ == "__main__":
    logging.disable(logging.INFO)
    drive(fit)
