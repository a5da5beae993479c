"""The one door: `fourfold OVERRIDES` runs, `fourfold -m OVERRIDES` sweeps, `fourfold info|report ...` look."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import __version__, groups, identity
from fourfold.config import ConfigError, RunConfig

if TYPE_CHECKING:  # `fourfold --help` does without Hydra
    from omegaconf import DictConfig

    from fourfold.compose import Start

log = logging.getLogger(__name__)

FAILED, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes


class RunFailed(Exception):
    """A run has failed and its folder says why. Holds one sentence, so that it can leave a worker process."""


def main() -> None:
    """The console script: exits with 0, 1 after a failed run, 2 after a refused configuration, 130 after Ctrl-C."""
    sys.exit(command(sys.argv[1:]))


def command(args: Sequence[str]) -> int:
    """Do what the command line says, or say in one line why not.

    Args:
        args: The words after `fourfold`.

    Returns:
        The exit code.
    """
    tracebacks_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are, instead of into Hydra's own print-out
    try:
        _dispatch(args)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "interrupted: the same command goes on", INTERRUPTED)
    except (ConfigError, RunFailed) as error:
        if tracebacks_wanted:
            raise
        return _say(str(error), FAILED if isinstance(error, RunFailed) else REFUSED)
    return 0


def _say(sentence: str, code: int) -> int:
    print(f"fourfold: {sentence}", file=sys.stderr, flush=True)
    return code


def _dispatch(args: Sequence[str]) -> None:
    completing = {"-sc", "--shell-completion"} & {*args} and os.environ.get("COMP_LINE")
    asked = Invocation.of(args)
    if completing:  # the words typed so far come in a variable
        _hydra(replace(asked, config_dir=Invocation.of(completing.split()[1:]).config_dir))
    elif "--version" in args:
        print(f"fourfold {__version__}")
    elif {"-h", "--help"} & {*args}:
        from fourfold.usage import usage

        print(usage(asked.dirs))
    elif args[:1] == ["report"]:
        _report(args[1:])
    elif args[:1] == ["info"]:
        _info(replace(asked, flags=asked.flags[1:]))
    elif asked.multirun:
        _sweep(asked)
    else:
        _hydra(asked)


@dataclass(frozen=True)
class Invocation:
    """A command line, taken apart."""

    overrides: tuple[str, ...]
    flags: tuple[str, ...]  # what is left for Hydra to read
    multirun: bool
    config_dir: str | None
    config_name: str | None

    @classmethod
    def of(cls, args: Sequence[str]) -> "Invocation":
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--multirun", "-m", action="store_true")
        parser.add_argument("--config-dir", "-cd")
        parser.add_argument("--config-name", "-cn")
        known, rest = parser.parse_known_args(args)
        overrides = tuple(word for word in rest if ("=" in word and not word.startswith("-")) or word.startswith("~"))
        flags = tuple(word for word in rest if word not in overrides)
        return cls(overrides, flags, known.multirun, known.config_dir, known.config_name)

    @property
    def dirs(self) -> tuple[Path, ...]:
        return (Path(self.config_dir).absolute(),) if self.config_dir else ()

    def argv(self) -> list[str]:
        """The command line as Hydra reads it: overrides first, since `--info` takes the next word for its own."""
        given = {"--config-dir": self.config_dir, "--config-name": self.config_name}
        options = [word for flag, value in given.items() if value for word in (flag, value)]
        return [*self.overrides, *self.flags, *options, *(["--multirun"] if self.multirun else [])]


def _report(args: Sequence[str]) -> None:
    if len(args) != 1 or not Path(args[0]).is_dir():
        raise ConfigError(f"`fourfold report {' '.join(args)}` names no study: give the folder of one, such as outputs/runs")
    from fourfold import report

    print(report.build(Path(args[0])))


def _info(asked: Invocation) -> None:
    from fourfold.compose import compose

    if asked.flags:
        raise ConfigError(f"`fourfold info` does not know {' '.join(asked.flags)}: give GROUP=OPTION and KEY=VALUE")
    config = compose(asked.overrides, asked.config_dir)
    from fourfold.info import show

    show(config)


def _sweep(asked: Invocation) -> None:
    from fourfold import multirun
    from fourfold.compose import ROOT, canonical, explained

    with explained(asked.overrides, asked.dirs):
        plan = multirun.plan(canonical(asked.overrides), asked.dirs, asked.config_name or ROOT)
    try:
        with multirun.checked_already():
            _hydra(replace(asked, overrides=tuple(plan.overrides)))
    except (RunFailed, ConfigError) as error:  # each failed run has said why; the others have finished
        raise RunFailed("not every run has finished: the same command runs what is missing") from error
    finally:
        _finish(plan.folders)


def _finish(folders: Sequence[Path]) -> None:
    studies = [folder for folder in folders if any(folder.glob("*/result.json"))]
    if studies:
        from fourfold import report

        for study in studies:
            report.finish(study)


def _hydra(asked: Invocation) -> None:
    import hydra

    from fourfold.compose import HYDRA_VERSION_BASE, ROOT, canonical, explained, register

    _refuse_shadowed(asked.dirs)
    register(asked.dirs)
    with explained(asked.overrides, asked.dirs):
        sys.argv = [sys.argv[0], *replace(asked, overrides=tuple(canonical(asked.overrides))).argv()]
        hydra.main(config_path=str(groups.conf_dir()), config_name=ROOT, version_base=HYDRA_VERSION_BASE)(task)()


def _refuse_shadowed(dirs: Sequence[Path]) -> None:
    """Hydra would silently prefer the built-in option of the same name."""
    built_in = groups.options((groups.conf_dir(),))
    for group, options in groups.options(dirs).items():
        for name, file in options.items():
            if name in built_in.get(group, {}):
                raise ConfigError(f"{file} has the name of a built-in option, which would be used instead: rename it")


def task(cfg: "DictConfig") -> None:
    """One run of Hydra's, in whatever process the launcher has chosen.

    Raises:
        ConfigError: the configuration cannot run.
        RunFailed: anything else, told in one sentence; the traceback is in the run's log.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from fourfold.compose import to_run_config, user_dirs

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    alone = job.mode == RunMode.RUN
    if alone and job.sweeper.get("params"):
        _say(f"this is one run; add -m to run every value of {', '.join(job.sweeper.params)}", 0)
    try:
        result = execute(to_run_config(cfg), folder, tuple(job.overrides.task), user_dirs(job))
    except (Exception, SystemExit) as error:  # a SystemExit would end the whole sweep
        failure = error if isinstance(error, ConfigError) else _failure(error, folder)
        if not alone:
            _say(f"{folder.name}: {failure}", FAILED)
        raise failure from error
    if alone and os.environ.get("RANK", "0") == "0":
        print(_told(result, folder))


def _told(result: dict[str, Any], folder: Path) -> str:
    scores = (f"{name} {value:.4g}" for name, value in result["metrics"]["test"].items() if isinstance(value, int | float))
    return f"test: {', '.join(scores)} (epoch {result['best_epoch']}, the best on validation) in {os.path.relpath(folder)}"


def _failure(error: BaseException, folder: Path) -> RunFailed:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):  # the terminal gets one line
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run failed", (), sys.exc_info()))
    reason = " ".join(str(error).split())
    return RunFailed(f"{type(error).__name__}: {reason} (the whole story is in {os.path.relpath(folder)})")


def execute(config: RunConfig, folder: Path, overrides: tuple[str, ...] = (), dirs: Sequence[Path] = ()) -> dict[str, Any]:
    """Run `config` in `folder`, after the run whose weights it starts from, if it names one and that has not finished yet.

    Args:
        config: The run, as `compose` gives it.
        folder: Where the run lies; `paths.outputs`/`study`/`identity.folder_name` by convention.
        overrides: What the user typed, for names and records.
        dirs: Folders with the user's own options, where the experiment of `model.weights=experiment:NAME` may lie.

    Returns:
        The result, as in `result.json`.
    """
    from fourfold.compose import settled, start_of

    start = start_of(config, dirs)
    if start is not None:
        _finish_start(start, dirs)
    config = settled(config, dirs)
    from fourfold.run import run

    return run(config, folder, overrides, run_id=identity.run_id(asdict(config)))


def _finish_start(start: "Start", dirs: Sequence[Path]) -> None:
    from fourfold.files import lock

    result = start.folder / "result.json"
    if not result.exists() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"torchrun cannot make {start.weights} on the way: first run `fourfold {start.overrides[0]}` alone")
    with lock(start.folder / ".lock"):  # several runs want it at once: one makes it, the others wait
        if not result.exists():
            execute(start.config, start.folder, start.overrides, dirs)
