"""TensorBoard: curves while a run trains, its hyper-parameters when it ends. https://www.tensorflow.org/tensorboard"""

import functools
from pathlib import Path
from types import TracebackType
from typing import Any

from fourfold.config import ConfigError, RunConfig
from fourfold.records import asdict
from fourfold.tracking.tracker import Tracker

NOT_HYPERPARAMETERS = ("logger", "paths", "search", "debug")


class EventFiles(Tracker):
    """Event files in the run's own folder, so that TensorBoard shows each run under its folder's name."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"logger={config.logger.name} needs TensorBoard, which is not installed: "
                "`pip install fourfold[tensorboard]`, or choose logger=wandb, csv or none"
            ) from error
        self._open = functools.partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None
        self._hyperparameters = hyperparameters(config)
        self._summary: dict[str, float] = {}

    def log(self, row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        if self._writer is None:
            # purge_step hides what an interrupted start of this run has written from this epoch on.
            self._writer = self._open(purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def summary(self, values: dict[str, Any]) -> None:
        self._summary |= {name: float(value) for name, value in values.items() if isinstance(value, int | float)}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self._summary:
            writer = self._writer or self._open()
            # TensorBoard reads the metrics of the table only from here, hence at the end. Without a run_name, torch would
            # make one more folder per run, named by the time.
            writer.add_hparams(self._hyperparameters, self._summary, run_name=".")
            self._writer = writer
        if self._writer is not None:
            self._writer.close()


def hyperparameters(config: RunConfig) -> dict[str, bool | str | float | int | None]:
    """The configuration as TensorBoard takes it: dotted names, and words for what is neither a number nor a word."""
    return {
        name: value if isinstance(value, bool | int | float | str | None) else str(value)
        for name, value in _flat(asdict(config), "")
        if name.split(".")[0] not in NOT_HYPERPARAMETERS
    }


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, child in value.items() for leaf in _flat(child, f"{name}.{key}" if name else str(key))]
