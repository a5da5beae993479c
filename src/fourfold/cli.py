"""The one door: `fourfold OVERRIDES` runs, `fourfold -m OVERRIDES` sweeps, `fourfold plan|info|report|status ...` look."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold import __version__, groups, imports
from fourfold.allocator import with_room
from fourfold.config import ConfigError
from fourfold.interrupts import like_ctrl_c
from fourfold.task import RunFailed, one_line, say, task

if TYPE_CHECKING:  # `fourfold --help` does without Hydra
    from fourfold.study.trials import TrialView

FAILED, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # a folder that does not let us in


def main() -> None:
    """The console script: exits with 0, 1 after a failed run, 2 after a refused configuration, 130 when asked to stop."""
    sys.exit(command(sys.argv[1:]))


def command(args: Sequence[str]) -> int:
    """Do what the command line says, or say in one line why not.

    With HYDRA_FULL_ERROR=1 in the environment, errors leave as they are, with their tracebacks.

    Args:
        args: The words after `fourfold`.

    Returns:
        The exit code.
    """
    asked = os.environ.get("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here as they are, instead of into Hydra's own print-out
    imports.begin()
    try:
        with like_ctrl_c():
            with_room(partial(_dispatch, args))
    except KeyboardInterrupt as stop:
        say(str(stop) or "interrupted: the same command goes on")
        return INTERRUPTED
    except (ConfigError, RunFailed) as error:
        if asked == "1":
            raise
        say(str(error))
        return FAILED if isinstance(error, RunFailed) else REFUSED
    except OSError as error:
        if asked == "1" or error.errno not in CLOSED or not isinstance(error.filename, str):
            raise
        say(
            f"{Path(error.filename).parent} cannot be used ({error.strerror}): make room or get the right to write there, or "
            "choose another folder: paths.outputs=FOLDER for runs, a copy of the study for its report"
        )
        return REFUSED
    finally:
        os.environ["HYDRA_FULL_ERROR"] = asked
        imports.end()
    return 0


def _dispatch(args: Sequence[str]) -> None:
    typed = os.environ.get("COMP_LINE", "") if {"-sc", "--shell-completion"} & {*args} else ""
    asked = Invocation.of(args)
    if typed:  # tab completion: what is on the command line so far
        _show(replace(asked, config_dir=Invocation.of([*typed.split()[1:], ""]).config_dir))
    elif "--version" in args:
        print(f"fourfold {__version__}")
    elif {"-h", "--help"} & {*args}:
        from fourfold.usage import usage

        print(usage(asked.dirs))
    elif args and args[0] == "report":
        _report(args[1:])
    elif args and args[0] == "status":
        _status(args[1:])
    elif args and args[0] == "info":
        _info(replace(asked, flags=asked.flags[1:]))
    elif args and args[0] == "place":
        _place(replace(asked, flags=asked.flags[1:]))
    elif args and args[0] == "verify":
        _verify(args[1:])
    elif args and args[0] == "plan":
        _plan(replace(asked, flags=asked.flags[1:]))
    elif any(flag.startswith("-") for flag in asked.flags):
        _show(asked)
    elif any(word.startswith("plan=") for word in asked.overrides):
        _plan(asked)
    elif asked.multirun:
        _sweep(asked)
    else:
        _run(asked)


@dataclass(frozen=True)
class Invocation:
    """A command line, taken apart."""

    overrides: tuple[str, ...]
    flags: tuple[str, ...]  # what is left for Hydra to read
    multirun: bool
    config_dir: str | None
    config_name: str

    @classmethod
    def of(cls, args: Sequence[str]) -> "Invocation":
        parser = argparse.ArgumentParser("fourfold", add_help=False, allow_abbrev=False)
        parser.add_argument("--multirun", "-m", action="store_true")
        parser.add_argument("--config-dir", "-cd")
        parser.add_argument("--config-name", "-cn", default="config")
        known, rest = parser.parse_known_args(args)
        overrides = tuple(word for word in rest if not word.startswith("-") and ("=" in word or word.startswith("~")))
        flags = tuple(word for word in rest if word not in overrides)
        return cls(overrides, flags, known.multirun, known.config_dir, known.config_name)

    @property
    def dirs(self) -> tuple[Path, ...]:
        return (Path(self.config_dir).absolute(),) if self.config_dir else ()

    def checked(self) -> "Invocation":
        """In canonical spelling, with nothing left over and with the user's own options seen by Hydra."""
        from fourfold.compose import canonical

        if self.flags:
            raise ConfigError(f"`{' '.join(self.flags)}` is neither a command nor KEY=VALUE: `fourfold --help` shows both")
        for folder in self.dirs:
            if not folder.is_dir():
                raise ConfigError(f"--config-dir={self.config_dir} is not a folder: give the one that holds your own options")
        _refuse_shadowed(self.dirs)
        return replace(self, overrides=tuple(canonical(self.overrides)))


def _refuse_shadowed(dirs: Sequence[Path]) -> None:
    """Hydra would silently prefer the built-in option of the same name."""
    built_in = groups.options((groups.conf_dir(),))
    for group, options in groups.options(dirs).items():
        for name, file in options.items():
            if name in built_in.get(group, {}):
                raise ConfigError(f"{file} has the name of a built-in option, which would be used instead: rename it")


def _report(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("fourfold report", add_help=False, allow_abbrev=False)
    parser.add_argument("--format")
    asked, folders = parser.parse_known_args(args)
    if len(folders) == 2:
        first, second = (_study("report", [folder]) for folder in folders)
    else:
        first, second = _study("report", folders), None
    from fourfold import report

    if second is not None:
        print(report.compare(first, second, asked.format))
    else:
        print(report.build(first, asked.format or "html"))


def _status(args: Sequence[str]) -> None:
    study = _study("status", args)
    from fourfold.report import status

    status.show(study, _trials(study))


def _trials(study: Path) -> "list[TrialView]":
    """Those of the study's search, wherever it keeps them; where they cannot be reached, a line says so."""
    from fourfold import multirun
    from fourfold.study.ledger import kept, view
    from fourfold.study.storage import open_storage

    try:
        database = multirun.database_of(study)
        return kept(study) if database is None else view(open_storage(database.url, study), database.study)
    except ConfigError as error:
        say(f"only the folders were read: {error}")
        return kept(study)  # it may have been a journal that the environment named


def _study(command: str, args: Sequence[str]) -> Path:
    if len(args) != 1 or not Path(args[0]).is_dir():
        raise ConfigError(f"`fourfold {command} {' '.join(args)}` names no study: give the folder of one, such as outputs/runs")
    return Path(args[0])


def _info(asked: Invocation) -> None:
    from fourfold.compose import compose

    asked = asked.checked()
    config = compose(asked.overrides, asked.config_dir)
    from fourfold.info import show

    show(config)


def _place(asked: Invocation) -> None:
    if len(asked.flags) == 1 and not asked.overrides and Path(asked.flags[0]).is_dir():
        from fourfold import survey

        survey.show(Path(asked.flags[0]))
        return
    asked = asked.checked()
    from fourfold import place

    place.show(asked.overrides, asked.dirs, asked.config_name)


def _verify(args: Sequence[str]) -> None:
    """`fourfold verify reproduce/NAME [--run|--offline] OVERRIDES`."""
    how = {"--run", "--offline"} & {*args}
    asked = Invocation.of([word for word in args if word not in how])
    names = [word for word in asked.flags if not word.startswith("-")]
    if len(names) != 1 or len(how) > 1:
        raise ConfigError(
            f"`fourfold verify {' '.join(args)}` names no published table: give one experiment, such as reproduce/kornblith12, "
            "and --run or --offline where wanted"
        )
    asked = replace(asked, flags=tuple(word for word in asked.flags if word not in names)).checked()
    from fourfold import verify

    (name,) = names
    if how == {"--offline"}:
        from fourfold import stand_in

        for table, outcome in stand_in.tried(name, asked.overrides, asked.dirs):
            print(f"{table}: {outcome}")
        print("It runs, on generated images and random weights: nothing was compared with what is published.")
        return
    if how == {"--run"} and not verify.measure_all(name, asked.overrides, asked.dirs):
        _sweep(replace(asked, overrides=(f"experiment={name}", *asked.overrides), multirun=True))
    if not verify.show(*verify.checks(name, asked.overrides, asked.dirs)):
        raise RunFailed(f"{name} came out otherwise than published: the table above says where")


def _plan(asked: Invocation) -> None:
    for word in asked.overrides:
        if word.startswith("plan=") and word.lower() != "plan=true":
            raise ConfigError(f"{word} is not plan=true: write that to see what would run, or leave it out to run it")
    asked = replace(asked, overrides=tuple(word for word in asked.overrides if not word.startswith("plan="))).checked()
    from fourfold.plan import show

    show(asked.overrides, asked.dirs, asked.config_name)


def _show(asked: Invocation) -> None:
    """Leave it to Hydra: `--cfg`, `--info`, `--hydra-help`, tab completion."""
    import hydra

    from fourfold.compose import VERSION_BASE, canonical, explained, register

    register(asked.dirs)
    options = ["--config-name", asked.config_name, *(["--config-dir", asked.config_dir] if asked.config_dir else [])]
    with explained(asked.overrides, asked.dirs):
        # overrides first, since --info takes the next word for its own
        sys.argv = [sys.argv[0], *canonical(asked.overrides), *asked.flags, *options]
        hydra.main(config_path=str(groups.conf_dir()), config_name=asked.config_name, **VERSION_BASE)(task)()


def _run(asked: Invocation) -> None:
    from fourfold.compose import explained, hydra_ready, searchpath
    from fourfold.multirun import refuse_password

    with explained(asked.overrides, asked.dirs):
        asked = asked.checked()
        for override in asked.overrides:
            if override.lstrip("+").startswith("hydra.sweeper.storage="):
                refuse_password(override.partition("=")[2].strip("'\""))
        words, chosen = _chosen(asked)
        with hydra_ready(asked.dirs) as hydra:
            overrides = [*words, *searchpath(words, asked.dirs), "hydra.mode=RUN"]
            failure = hydra.run(asked.config_name, partial(task, chosen=chosen), overrides).return_value
    if failure is not None:
        raise failure


def _chosen(asked: Invocation) -> tuple[list[str], str | None]:
    """The overrides with what `quadrant=auto` chooses in its place, and what is told of it."""
    words = [*asked.overrides]
    if not any(word.lstrip("+") == "quadrant=auto" for word in words):  # what follows loads torch
        return words, None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "quadrant=auto measures in one process, not under torchrun: give what `fourfold place` suggests instead"
        )
    from fourfold import auto
    from fourfold.compose import composed, to_run_config
    from fourfold.place import placed

    config = to_run_config(composed(words, asked.dirs, asked.config_name))
    placement = placed(config, asked.dirs)
    choice = auto.choose(placement)
    words = auto.written(words, choice, config.optimizer.lr)
    return words, auto.told(placement, choice, words)


def _sweep(asked: Invocation) -> None:
    from fourfold import multirun
    from fourfold.compose import hydra_ready, searchpath

    asked = asked.checked()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("-m starts many runs, and torchrun one of several processes: leave torchrun out, or -m")
    plan = multirun.plan(asked.overrides, asked.dirs, asked.config_name)
    overrides = [*plan.overrides, *searchpath(plan.overrides, asked.dirs), "hydra.mode=MULTIRUN"]
    try:
        with hydra_ready(asked.dirs) as hydra, multirun.checked_already():
            batches = hydra.multirun(asked.config_name, task, overrides)
        if plan.maps and "FOURFOLD_WORKER" not in os.environ:
            from fourfold import survey

            for folder in plan.folders:
                survey.finish(folder, plan.until)
    except ConfigError:  # the sweep itself cannot be
        raise
    except Exception as error:  # a worker was killed, a launcher could not start
        raise RunFailed(f"the sweep was cut short by {one_line(error)}: the same command runs what is missing") from error
    finally:
        if "FOURFOLD_WORKER" not in os.environ:  # else the process that started this one reports
            _finish(plan.folders)
    if "FOURFOLD_WORKER" in os.environ:
        return None
    if plan.max_failure_rate is not None:
        return _judge(plan.folders, plan.max_failure_rate)
    failures = [job.return_value for batch in batches for job in batch if isinstance(job.return_value, Exception)]
    if failures:  # each has been told when it happened
        jobs = sum(map(len, batches))
        raise RunFailed(f"{len(failures)} of {jobs} runs failed: the same command runs them again, and nothing else")
    return None


def _judge(folders: Sequence[Path], max_failure_rate: float) -> None:
    """Write down how each study stands, tell what needs a look, and fail where more has failed than the search allows."""
    from fourfold.report import status
    from fourfold.study import digest

    for folder in folders:
        found = digest.digest(folder, _trials(folder))
        if len(found.of("done")) < len(found.runs):
            status.show(folder, _trials(folder))
        else:
            digest.write(found)
        if digest.verdict(found, max_failure_rate):
            raise RunFailed(f"{len(found.of('failed'))} of {len(found.runs)} runs failed: `fourfold status {folder}` says why")


def _finish(folders: Sequence[Path]) -> None:
    studies = [folder for folder in folders if any(folder.glob("*/result.json"))]
    if studies:
        imports.begin()
        from fourfold import report

        for study in studies:
            report.finish(study)
            hint = study / "wandb" / "how_to_sync.txt"
            if hint.exists():
                print(hint.read_text(encoding="utf-8").strip())
