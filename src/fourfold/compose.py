"""The only way into a RunConfig: what Hydra composes from `conf/`, the user's folders and the command line."""

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import hydra
import omegaconf
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from fourfold import groups, identity
from fourfold.checks import validate
from fourfold.config import ConfigError, RunConfig
from fourfold.explain import COMPOSITION_ERRORS, explain, unknown_key
from fourfold.jobs import Jobs
from fourfold.records import asdict

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

_EXPERIMENT = "experiment:"
ROOT = "config"  # the primary config: conf/config.yaml
# Hydra 1.4 has one set of defaults, and warns of the word
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
_SHORT = {  # the start of a key -> what it stands for
    re.compile(r"^([+~]*)freeze(?=[=@.]|$)"): r"\1freeze_strategy",
    re.compile(r"^([+~]*)sweep(?=\.)"): r"\1hydra.sweeper",
}
_FREEZE_CHOICE = re.compile(r"[+~]*(freeze|freeze_strategy)(?:@[^=]*)?(?:=|$)")


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> RunConfig:
    """The run that `fourfold OVERRIDES` would start, validated. Works alone and inside a running Hydra program. A process reads
    the package's own options once; those of `config_dir` each time.

    Args:
        overrides: As on the command line, without commas: `["model=resnet18", "freeze=full", "optimizer.lr=1e-4"]`.
        config_dir: A folder with the user's own options, as `--config-dir`.

    Raises:
        ConfigError: one sentence with the key, the value, what is allowed and the cure.
    """
    dirs = (Path(config_dir).absolute(),) if config_dir is not None else ()
    with explained(overrides, dirs):
        words = canonical(overrides)
        return to_run_config((None if dirs else _composed_before(words)) or composed(words, dirs))


@contextmanager
def explained(overrides: Sequence[str], dirs: Sequence[Path] = ()) -> Iterator[None]:
    """Whatever Hydra or OmegaConf refuses inside becomes a ConfigError of one sentence."""
    try:
        yield
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(error, canonical(overrides), (groups.conf_dir(), *dirs))) from error


def canonical(overrides: Sequence[str]) -> list[str]:
    """Every override with `freeze_strategy` in place of its short name `freeze`, and `hydra.sweeper.` in place of `sweep.`.

    Raises:
        ConfigError: both names choose an option.
    """
    chosen = {match[1] for override in overrides if (match := _FREEZE_CHOICE.match(override))}
    if len(chosen) > 1:
        raise ConfigError("freeze= and freeze_strategy= name the same option; give one of them")
    return [_long(override) for override in overrides]


def _long(override: str) -> str:
    for short, long in _SHORT.items():
        override = short.sub(long, override, count=1)
    return override


def register(dirs: Sequence[Path] = ()) -> None:
    """Tell Hydra the schema, the short name `freeze` of every strategy, and `${run_folder:}`; again is harmless.

    Args:
        dirs: Folders with the user's own options.
    """
    store = ConfigStore.instance()
    if "schema.yaml" not in store.repo:
        store.store(name="schema", node=_schema(RunConfig))
    known = store.repo.get("freeze", {})
    for option in groups.options((groups.conf_dir(), *dirs))["freeze_strategy"]:
        if f"{option}.yaml" not in known:
            store.store(group="freeze", name=option, node={}, package="_global_")


def _schema(kind: type) -> DictConfig:
    # Nodes are built down to the leaves: OmegaConf 2.3.1 fails on an assertion when Hydra expands a whole missing node that
    # holds a Union field.
    node: DictConfig = OmegaConf.structured(kind)
    for name, section in _sections(kind).items():
        node[name] = _schema(section)
    return node


@functools.cache
def _sections(kind: type) -> dict[str, type]:
    """The fields of a config class that are config classes themselves."""
    return {name: hint for name, hint in _hints(kind).items() if isinstance(hint, type) and is_dataclass(hint)}


@functools.cache  # of a dozen classes; every run is checked against them several times
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def composed(overrides: Sequence[str], dirs: Sequence[Path] = (), config_name: str = ROOT) -> DictConfig:
    """Hydra's own composition, `hydra` node included; raises what Hydra raises."""
    with hydra_ready(dirs):
        return hydra.compose(config_name, [*overrides, *searchpath(overrides, dirs)], return_hydra_config=True)


def _composed_before(overrides: Sequence[str]) -> DictConfig | None:
    """As `composed`, where only plain values set it apart from what this process has composed before; None where it does not
    compose: Hydra shall say why."""
    with suppress(*COMPOSITION_ERRORS):
        jobs = _jobs(groups.conf_dir())
        return None if any(map(jobs.sweeps, overrides)) else jobs.load_sweep_config(_NO_MASTER, [*overrides])
    return None


_NO_MASTER = OmegaConf.create({"hydra": {"overrides": {"hydra": []}}})


@functools.cache
def _jobs(conf: Path) -> Jobs:
    return Jobs(_Package(groups.options((conf,))))


class _Package:
    """Composes as Hydra's loader does, from the package's own options."""

    def __init__(self, options: Mapping[str, Mapping[str, Path]]) -> None:
        self._options = options

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        return composed(sweep_overrides)

    def get_group_options(self, group_name: str) -> list[str]:
        return [*self._options.get(group_name, ())]


@contextmanager
def hydra_ready(dirs: Sequence[Path] = ()) -> Iterator["Hydra"]:
    """Hydra over the package's configuration; a Hydra program that is running is set aside and put back."""
    register(dirs)
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(groups.conf_dir()), job_name="fourfold", **VERSION_BASE):
            ready = GlobalHydra.instance().hydra
            assert ready is not None
            yield ready
    finally:
        GlobalHydra.instance().hydra = running


def searchpath(overrides: Sequence[str], dirs: Sequence[Path]) -> list[str]:
    """The override that makes Hydra look into `dirs`, after the folders that `overrides` already name."""
    if not dirs:
        return []
    if any(override.startswith("hydra.searchpath=") for override in overrides):
        raise ConfigError("--config-dir and hydra.searchpath= both add folders with options; give one of them")
    paths = (str(folder).replace("'", r"\'") for folder in dirs)
    quoted = (f"'file://{path}'" for path in paths)
    return [f"hydra.searchpath=[{','.join(quoted)}]"]


def to_run_config(cfg: DictConfig) -> RunConfig:
    """The composed config as plain objects, validated; OmegaConf goes no further.

    Raises:
        ConfigError: the values cannot run together.
        omegaconf.errors.OmegaConfBaseException: a value is missing, or an interpolation leads nowhere.
    """
    config: RunConfig = _object(cfg, RunConfig)
    validate(config)
    return config


def _object(node: DictConfig, kind: type, prefix: str = "") -> Any:
    """As `OmegaConf.to_object`, in half of its time; what `+key=value` added to the schema, and configs that were composed
    without it, are refused."""
    known, sections = _hints(kind), _sections(kind)
    content = node.__dict__["_content"]
    for name in content:
        key = f"{prefix}{name}"
        if name not in known and key != "hydra":
            raise ConfigError(unknown_key(key, (f"{key}={node[name]}",)))
    values: dict[str, Any] = {}
    for name in known:
        if name not in sections:
            values[name] = _value(node, name, prefix)
            continue
        section: Any = content.get(name)
        if section is None or not isinstance(section.__dict__["_content"], dict):  # missing, or an interpolation
            section = node[name]
        if not issubclass(OmegaConf.get_type(section) or object, sections[name]):
            raise ConfigError(f"{prefix}{name} is not checked: begin the defaults list of your config with `- {ROOT}`")
        values[name] = _object(section, sections[name], f"{prefix}{name}.")
    return kind(**values)


_AS_THEY_ARE = (str, int, float, bool, type(None))


def _value(node: DictConfig, name: str, prefix: str) -> Any:
    """A value as its node holds it, unless something has to be resolved."""
    child = node.__dict__["_content"].get(name)
    held = MISSING if child is None else child.__dict__.get("_val", child)
    if type(held) in _AS_THEY_ARE and (type(held) is not str or (held != MISSING and "${" not in held)):
        return held
    if held == MISSING:
        raise MissingMandatoryValue(f"Missing mandatory value: {prefix}{name}")
    held = node[name]
    return OmegaConf.to_object(held) if OmegaConf.is_config(held) else held


def recorded(plain: Mapping[str, Any]) -> RunConfig:
    """A run's configuration read back from its record, validated; keys that its version did not know have their defaults.

    Args:
        plain: As in `config.json`.

    Raises:
        ConfigError: the values cannot run together.
    """
    usual = OmegaConf.to_container(
        OmegaConf.masked_copy(_composed_once((), ()), [each.name for each in fields(RunConfig)]), resolve=True
    )
    assert isinstance(usual, dict)
    cfg = _schema(RunConfig)
    cfg.merge_with(_known(plain, {str(key): value for key, value in usual.items()}, RunConfig))
    return to_run_config(cfg)


def _known(plain: Mapping[str, Any], usual: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Of each key of the schema the value in `plain`, or else the usual one."""
    sections = _sections(kind)
    return {
        name: _known(plain.get(name, {}), usual[name], sections[name]) if name in sections else plain.get(name, usual[name])
        for name in _hints(kind)
    }


@dataclass(frozen=True)
class Start:
    """The run whose best weights another run starts from (`model.weights=experiment:NAME`)."""

    config: RunConfig
    folder: Path
    overrides: tuple[str, ...]

    @property
    def weights(self) -> str:
        adapted = self.config.freeze_strategy.adapter.kind != "none"
        return str(self.folder / ("merged.pt" if adapted else "best.pt"))


def start_of(config: RunConfig, dirs: Sequence[Path] = (), _above: tuple[str, ...] = ()) -> Start | None:
    """The run that `config` starts from, or None when its weights are already there.

    Nothing that changes the start's result comes from `config`, so that all the runs of a study share one start: it takes over
    the paths and the device, and tells no logger. Only `debug=smoke` is passed on: a smoke run starts from smoke weights.
    """
    weights = config.model.weights or ""
    if not config.freeze_strategy.pretrained or not weights.startswith(_EXPERIMENT):
        return None
    name = weights.removeprefix(_EXPERIMENT)
    if name in _above:
        raise ConfigError(f"model.weights={weights} starts from itself: choose model.weights=null or a file in that experiment")
    overrides = (f"experiment={name}", "logger=none", *(["debug=smoke"] if config.debug.name == "smoke" else []))
    trainer = tuple((key, getattr(config.trainer, key)) for key in ("device", "threads", "progress"))
    return _start(overrides, tuple(dirs), tuple(asdict(config.paths).items()), trainer, (*_above, name))


@functools.lru_cache  # the runs of a sweep share it, and each asks for it several times
def _start(
    overrides: tuple[str, ...],
    dirs: tuple[Path, ...],
    paths: tuple[tuple[str, Any], ...],
    trainer: tuple[tuple[str, Any], ...],
    above: tuple[str, ...],
) -> Start:
    cfg = copy.deepcopy(_composed_once(overrides, dirs))
    cfg.merge_with({"study": "pretrained", "paths": dict(paths), "trainer": dict(trainer)})
    start = to_run_config(cfg)
    folder = identity.folder_name(asdict(settled(start, dirs, above)))
    return Start(start, Path(start.paths.outputs) / start.study / folder, overrides)


@functools.lru_cache
def _composed_once(overrides: tuple[str, ...], dirs: tuple[Path, ...]) -> DictConfig:
    return composed(overrides, dirs)


def settled(config: RunConfig, dirs: Sequence[Path] = (), _above: tuple[str, ...] = ()) -> RunConfig:
    """`config` with `model.weights=experiment:NAME` replaced by the file that NAME's run leaves; nothing is run."""
    start = start_of(config, dirs, _above)
    return config if start is None else replace(config, model=replace(config.model, weights=start.weights))


def user_dirs(job: HydraConf) -> tuple[Path, ...]:
    """The folders with the user's own options, out of the `hydra` node of a composed config."""
    sources = job.runtime.config_sources
    return tuple(Path(source.path) for source in sources if source.schema == "file" and source.provider != "main")


def _run_folder(*, _root_: DictConfig) -> str:
    return identity.folder_name(asdict(settled(to_run_config(_root_), user_dirs(_root_.hydra))))


# OmegaConf 2.3 has an older function of the name that 2.4 gave it
_register = OmegaConf.register_new_resolver if omegaconf.__version__.startswith("2.3") else OmegaConf.register_resolver
_register("run_folder", _run_folder, replace=True)  # type: ignore[call-arg]
