"""`fourfold -m`: every swept key once, every value checked, and a study folder that the same command finds again."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fourfold import checks, groups
from fourfold.compose import ROOT, canonical, composed, explained, hydra_ready
from fourfold.config import ConfigError
from fourfold.identity import changes_the_result
from fourfold.jobs import Jobs, quickly

# whose `params` are overrides like those of the command line
OURS = "hydra_plugins.fourfold_sweeper.sweeper.FourfoldSweeper"
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_SWEEPERS = (BASIC, OURS)
_OF_HYDRA = re.compile(r"[+~]*hydra[./]")  # an override of the sweep, not of its runs


@dataclass(frozen=True)
class Plan:
    """A multirun, checked."""

    overrides: list[str]  # what Hydra is given, in canonical spelling
    folders: tuple[Path, ...]  # of the study, or of each when `study` itself is swept
    max_failure_rate: float | None  # above which the multirun ends with an error; None: any failure is one
    maps: bool  # whether it measures where its data sets lie, once its runs are done
    until: float | None  # seconds since the epoch at which its time is up


def plan(overrides: Sequence[str], dirs: Sequence[Path] = (), config_name: str = ROOT) -> Plan:
    """Prepare a multirun, and refuse what cannot run before any job has started.

    `hydra.sweeper.params` (of an experiment or a search) join the overrides; where both name a key,
    the command line's values are taken. Not every combination is composed, but every value once, beside the first value of
    all other keys.

    Args:
        overrides: The command line's, in canonical spelling.
        dirs: Folders with the user's own options.
        config_name: The primary config.

    Raises:
        ConfigError: one sentence about the first value that cannot run.
    """
    began = time.time()
    with explained(overrides, dirs):
        cfg = composed(_points(_parsed(overrides, dirs))[0], dirs, config_name)
        _check_sweeper(cfg.hydra.sweeper)
        refuse_password(_as_written(cfg))
        _storage(cfg)
        merged = [*_params(cfg, overrides, dirs), *overrides]
        if len(merged) > len(overrides):
            merged.append("hydra.sweeper.params=null")
        parsed = _parsed(merged, dirs)
        _refuse_intervals(parsed, cfg.hydra.sweeper.get("_target_"))
        study = [f"study={_study_name(parsed, overrides)}"] if cfg.study == _unnamed_study() else []
        folders = []
        with hydra_ready(dirs) as hydra, quickly():
            jobs = Jobs(hydra.config_loader)
            for point in _points(parsed):
                job = jobs.load_sweep_config(cfg, [*(text for text in point if not _OF_HYDRA.match(text)), *study])
                _ = job.hydra.sweep.subdir  # resolves and validates all of it: the folder's name is a hash of the run
                folders.append(Path(job.hydra.sweep.dir))
    ours = cfg.hydra.sweeper.get("_target_") == OURS
    most = float(cfg.search.max_failure_rate) if ours else None
    # a launcher that sends runs to other machines may have been started on one that shall not compute
    here = any(name in str(cfg.hydra.launcher.get("_target_")) for name in ("basic", "joblib"))
    until = began + checks.seconds(cfg.search.timeout) if ours and cfg.search.timeout else None
    return Plan([*merged, *study], tuple(dict.fromkeys(folders)), most, bool(cfg.search.map) and here, until)


def _check_sweeper(sweeper: DictConfig) -> None:
    """Hydra reads a sweeper's settings without their types."""
    if sweeper.get("_target_") != OURS:
        return
    wanted = (
        ("workers", -1, "processes, or -1 for one per core or GPU"),
        ("n_jobs", 1, "runs, or null"),
        ("heads", 1, "heads to train at once, 1 or more"),
    )
    for key, least, meaning in wanted:
        value = sweeper[key]
        if not (key == "n_jobs" and value is None) and (type(value) is not int or value < least or value == 0):
            raise ConfigError(f"sweep.{key}={value} is not a number of {meaning}: give a whole number")


@dataclass(frozen=True)
class Database:
    """Where a study keeps its trials, if not in its folder."""

    url: str
    study: str  # its name there; a database may hold many


def database_of(folder: Path) -> Database | None:
    """The database in which the study of `folder` keeps its trials; None where it keeps them in the folder, or keeps none.

    Raises:
        ConfigError: The environment, which names the database, does not do so here.
    """
    file = folder / "multirun.yaml"
    cfg = OmegaConf.load(file) if file.exists() else OmegaConf.create()
    if OmegaConf.select(cfg, "hydra.sweeper._target_") != OURS or _as_written(cfg) in ("journal", "sqlite"):
        return None
    return Database(_storage(cfg), str(cfg.study))


def _storage(cfg: Any) -> str:
    """The sweeper's storage, with what the environment says of it."""
    try:
        return str(OmegaConf.select(cfg, "hydra.sweeper.storage"))
    except InterpolationResolutionError as error:
        names = re.findall(r"oc\.env:\s*(\w+)", _as_written(cfg))
        unset = " and ".join(name for name in names if name not in os.environ) or str(error).partition("\n")[0]
        raise ConfigError(
            f"hydra.sweeper.storage is a database named by the environment, but {unset} is not set here: "
            "export it, the same on every machine of the study"
        ) from None


def _as_written(cfg: Any) -> str:
    """The sweeper's storage with its interpolations, as Hydra writes it down."""
    sweeper = OmegaConf.select(cfg, "hydra.sweeper")
    written: Any = OmegaConf.to_container(sweeper, resolve=False) if sweeper is not None else {}
    return str(written.get("storage") or "")


def refuse_password(storage: str) -> None:
    """Refuse a database URL that holds its password: Hydra writes it into the study's folder, and into that of each run.

    Args:
        storage: `hydra.sweeper.storage`, with its interpolations unresolved.

    Raises:
        ConfigError: The URL holds a password. The message does not.
    """
    plain, count = storage, 1
    while count:  # what comes from elsewhere is not written down; a default for it is
        plain, count = re.subn(r"\$\{((?!://)[^{}])*\}", "", plain)
    if re.search(r"://[^/:@]*:[^@]+@|[?&]password=[^&]", plain):
        raise ConfigError(
            f"hydra.sweeper.storage={storage.partition('://')[0]}://... holds a password, which would be written into the "
            "study's folder: put the URL into an environment variable, and give hydra.sweeper.storage='${oc.env:STUDY_URL}'"
        )


def _refuse_intervals(parsed: Sequence[Override], sweeper: str | None) -> None:
    """Hydra's own sweeper can only list values."""
    for override in parsed:
        if sweeper == BASIC and override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line} is an interval, which Hydra's basic sweeper cannot search: "
                "leave hydra/sweeper=basic out, or list values with commas"
            )


def _params(cfg: DictConfig, overrides: Sequence[str], dirs: Sequence[Path]) -> list[str]:
    """`hydra.sweeper.params` as overrides, without those that the command line has anyway."""
    if cfg.hydra.sweeper.get("_target_") not in _SWEEPERS:
        return []
    params = canonical([f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()])
    given = {override.key_or_group for override in _parsed(overrides, dirs)}
    return [text for text, param in zip(params, _parsed(params, dirs), strict=True) if param.key_or_group not in given]


def _parsed(overrides: Sequence[str], dirs: Sequence[Path]) -> list[Override]:
    with hydra_ready(dirs) as hydra:
        return OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([*overrides])


def _points(parsed: Sequence[Override]) -> list[list[str]]:
    """The first value of everything, then that with each other value in turn. A continuous range is left at its default."""
    choices = [values for override in parsed if (values := _values(override))]
    first = [values[0] for values in choices]
    others = [[*first[:i], value, *first[i + 1 :]] for i, values in enumerate(choices) for value in values[1:]]
    return [first, *others]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _study_name(parsed: Sequence[Override], overrides: Sequence[str]) -> str:
    """`<keys swept>-<hash of the command>`: the same command in any order, on any launcher, with any number of trials."""
    swept = {override.key_or_group.rpartition(".")[2] for override in parsed if override.is_sweep_override()}
    words = sorted(word for word in overrides if changes_the_result(word) or word.startswith("search="))
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", "-".join(sorted(swept)) or "multirun")[:80] + f"-{digest}"


def _unnamed_study() -> str:
    """The study of whoever names none."""
    return str(OmegaConf.load(groups.conf_dir() / f"{ROOT}.yaml").study)


@contextmanager
def checked_already() -> Iterator[None]:
    """Keep Hydra's sweeper from composing every job once more before the launcher does: `plan` has checked each value."""
    check = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = check  # type: ignore[method-assign]
