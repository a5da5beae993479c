"""Recording a run for people: Weights & Biases, TensorBoard, a table, the console.

The primary record, metrics.jsonl and result.json in the run's folder, is written by `fourfold.run` whatever happens here.
"""

import functools
import logging
from pathlib import Path

from fourfold.config import RunConfig
from fourfold.tracking.tracker import Tracker, Trackers
from fourfold.trial import NoTrial, Trial

__all__ = ["Tracker", "open_tracker"]

log = logging.getLogger(__name__)


def open_tracker(
    config: RunConfig, folder: Path, *, run_id: str, overrides: tuple[str, ...] = (), trial: Trial | None = None
) -> Tracker:
    """The trackers that `config.logger` enables, as one; nothing is opened before its `with` block begins.

    In a distributed run only rank 0 may call this. No method of the result raises because of W&B, and none draws random
    numbers. W&B may use the network; all write to the disk.

    Args:
        config: the run; `config.logger` says who listens, the rest is recorded as its configuration.
        folder: the run's own folder; its parent is the study's folder, where W&B keeps its files in `wandb/`.
        run_id: the run's identity, of which W&B's run id is made.
        overrides: the command-line choices that set this run apart; they give W&B's run its name.
        trial: the search that asks for this run, if any; W&B's run says which of its trials it is.

    Raises:
        ConfigError: TensorBoard is enabled but not installed.
    """
    # Imported here, so that a run pays only for whom it tells: wandb takes half a second to import.
    trackers: list[Tracker] = []
    if config.logger.csv.enabled:
        from fourfold.tracking.csv_table import CsvTable

        trackers.append(CsvTable(folder / "metrics.csv"))
    if config.logger.tensorboard.enabled:
        from fourfold.tracking.event_files import EventFiles

        trackers.append(EventFiles(config, folder))
    if config.logger.wandb.enabled and _wandb_is_there():
        from fourfold.tracking.weights_and_biases import WandbRun

        trackers.append(WandbRun(config, folder, run_id=run_id, overrides=overrides, trial=trial or NoTrial()))
    return Trackers(trackers)


@functools.cache
def _wandb_is_there() -> bool:
    """Whether W&B can be imported; where it cannot, that is said once in a process."""
    try:
        import wandb  # noqa: F401
    except Exception as error:  # of a package that it needs, too: a protobuf of other days raises a TypeError
        log.warning(
            "W&B cannot be imported (%s: %s): this process records its runs in their own folders alone; "
            "`pip install --force-reinstall wandb` mends it, logger=none does without",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return False
    return True
