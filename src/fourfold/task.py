"""One run of Hydra's, in whatever process: after the run that it starts from, and with its failure told in a sentence."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import identity, imports
from fourfold.config import ConfigError, RunConfig
from fourfold.records import asdict
from fourfold.trial import Pruned, Trial

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fourfold.compose import Start

log = logging.getLogger(__name__)


class RunFailed(Exception):
    """A run has failed, told in one sentence; its folder holds the whole story."""


def say(sentence: str) -> None:
    """Tell whoever sits at the terminal."""
    print(f"fourfold: {sentence}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """An error in one line, with its kind."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def task(
    cfg: "DictConfig", trial: Trial | None = None, chosen: str | None = None, **company: Any
) -> ConfigError | RunFailed | None:
    """One run of Hydra's, in whatever process the launcher has chosen.

    Args:
        cfg: The job's configuration.
        trial: The search that asks for this run, if any.
        chosen: What `quadrant=auto` chose for it, if it did: a line of its log.
        company: What `run` is told of other runs of this process: `drive` and `shared`.

    Returns:
        Why it failed, if it did. Raising would make Hydra end the sweep after this batch, and print a message of its own.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from fourfold.compose import to_run_config, user_dirs

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if chosen:
        log.info(chosen)
    alone = job.mode == RunMode.RUN
    if alone and job.sweeper.get("params"):
        say(f"this is one run: add -m to run every value of {', '.join(job.sweeper.params)}")
    try:
        result = execute(to_run_config(cfg), folder, tuple(job.overrides.task), user_dirs(job), trial, **company)
    except Pruned as end:
        log.info("%s: %s", folder.name, end)
        return None
    except (Exception, SystemExit) as error:
        failure = _failure(error, folder)
        if not alone:
            from fourfold.memory import release

            release(failure)  # the sweeper keeps it, and a later run needs the room
            say(f"{folder.name}: {failure}")
        return failure
    if alone and os.environ.get("RANK", "0") == "0":
        print(_told(result, folder))
    return None


def _failure(error: BaseException, folder: Path) -> ConfigError | RunFailed:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the terminal gets one line
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run failed", (), sys.exc_info()))
    if isinstance(error, ConfigError):
        return error
    failure = RunFailed(f"{one_line(error)} (the whole story: {os.path.relpath(folder)})")
    failure.__cause__ = error  # for HYDRA_FULL_ERROR=1
    return failure


def _told(result: dict[str, Any], folder: Path) -> str:
    scores = (f"{name} {value:.4g}" for name, value in result["metrics"]["test"].items() if isinstance(value, int | float))
    return f"test: {', '.join(scores)} (epoch {result['best_epoch']}, the best on validation) in {os.path.relpath(folder)}"


def execute(
    config: RunConfig,
    folder: Path,
    overrides: tuple[str, ...] = (),
    dirs: Sequence[Path] = (),
    trial: Trial | None = None,
    **company: Any,
) -> dict[str, Any]:
    """Run `config` in `folder`, after the run whose weights it starts from, if it names one and that has not finished yet.

    Args:
        config: The run, as `compose` gives it.
        folder: Where the run lies; `paths.outputs`/`study`/`identity.folder_name` by convention.
        overrides: What the user typed, for names and records.
        dirs: Folders with the user's own options, where the experiment of `model.weights=experiment:NAME` may lie.
        trial: The search that asks for this run, if any.
        company: As for `task`.

    Returns:
        The result, as in `result.json`.
    """
    from fourfold.compose import settled, start_of

    if config.quadrant.name == "auto":
        raise ConfigError("quadrant=auto is measured where it is typed: give it on the command line, or among what is swept")
    start = start_of(config, dirs)
    if start is not None:
        finish_start(start, config, dirs)
    config = settled(config, dirs)
    with imports.loading("torch"):
        from fourfold.run import run

    return run(config, folder, overrides, run_id=identity.run_id(asdict(config)), trial=trial, **company)


def finish_start(start: "Start", config: RunConfig, dirs: Sequence[Path]) -> None:
    """Make the weights that `config` starts from, unless they are there; but first see that `config` can run at all."""
    if (start.folder / "result.json").exists():
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"torchrun cannot make {start.weights} on the way: first run `fourfold {start.overrides[0]}` alone")
    from fourfold.assembly import rehearse

    rehearse(config)
    execute(start.config, start.folder, start.overrides, dirs)  # several runs may want it: one makes it, the others wait
