"""Many configurations, above all of a sweep's jobs: each choice of options composed once, plain values set in copies of it."""

import copy
import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, Protocol, Self

import omegaconf.base
import omegaconf.omegaconf
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Box, Node
from omegaconf.errors import OmegaConfBaseException

KEPT = 64  # compositions, some 250 kB each: jobs of the same options come together, or take turns with those of other cells
SECTIONS = 1024  # of configurations, of which the YAML is remembered
_OF_THE_JOB = "hydra.job.env_set."  # added to every job, with another value each time


class JobConfig(DictConfig):
    """A job's configuration, of which Hydra takes half a dozen copies: in an eighth of OmegaConf's time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As OmegaConf has it: the parent is kept, but not copied."""
        copied: Self = _copied(self, self.__dict__["_parent"])
        return copied


def _copied(node: Any, parent: Box | None) -> Any:
    """A node as it is, with copies of all that lies in it: what `deepcopy` does, without a call for every attribute."""
    copied = object.__new__(type(node))
    state = copied.__dict__
    state.update(node.__dict__)
    state["_parent"] = parent
    if "_content" in state:  # a container; of a value nothing but the value changes
        state["_metadata"] = facts = object.__new__(type(node._metadata))
        facts.__dict__.update(node._metadata.__dict__)
        facts.flags = dict(facts.flags or {})
        # of resolvers that are to be called once, all at the root; it is empty almost everywhere
        facts.resolver_cache = copy.deepcopy(facts.resolver_cache) if facts.resolver_cache else defaultdict(dict)
    match state.get("_content", state.get("_val")):
        case dict() as children:
            state["_content"] = {key: _copied(child, copied) for key, child in children.items()}
        case list() as children:
            state["_content"] = [_copied(child, copied) for child in children]
        case None | str() | int() | float():
            pass  # bool is an int
        case Node() as child:  # of a union
            state["_content"] = _copied(child, copied)
        case value:
            state["_val"] = copy.deepcopy(value)
    return copied


def _copied_fast(job: DictConfig) -> DictConfig:
    """`job`, which makes its copies fast from now on; so does its `hydra` node, which Hydra copies by itself."""
    for node in (job, job.hydra):
        object.__setattr__(node, "__class__", JobConfig)  # DictConfig would take a plain assignment for a key
    return job


@contextmanager
def quickly() -> Iterator[None]:
    """While jobs are composed and run: OmegaConf remembers how interpolations are parsed, and how it has written a section.

    Much of what Hydra does around a run is OmegaConf reading the same `${paths.outputs}/${study}` again, and writing the
    run's two configurations, of which little is new. Both are the same afterwards, text for text; an OmegaConf that is built
    otherwise is left alone.
    """
    reading: Any = omegaconf.base
    parse, to_yaml = getattr(reading, "parse", None), OmegaConf.to_yaml
    dumper = getattr(omegaconf.omegaconf, "get_omega_conf_dumper", None)
    shared: Any = OmegaConf
    try:
        if parse is not None:
            reading.parse = functools.lru_cache(1024)(parse)  # the trees are only read
        if dumper is not None:
            shared.to_yaml = staticmethod(Written(to_yaml, dumper()))
        yield
    finally:
        if parse is not None:
            reading.parse = parse
        shared.to_yaml = staticmethod(to_yaml)


class Written:
    """Writes configurations as OmegaConf does, but with the YAML of C, and a section that has not changed only once.

    Args:
        to_yaml: OmegaConf's.
        dumper: OmegaConf's way to write YAML.
    """

    def __init__(self, to_yaml: Callable[..., str], dumper: type[Any]) -> None:
        self._to_yaml = to_yaml
        in_c = getattr(yaml, "CDumper", dumper)
        self._dumper = type("Dumper", (in_c,), {"yaml_representers": dumper.yaml_representers})
        self._sections: dict[str, str] = {}

    def __call__(self, cfg: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        """As `OmegaConf.to_yaml` has it."""
        content = _contents(cfg) if OmegaConf.is_config(cfg) else None
        if resolve or sort_keys or not isinstance(content, dict | list):
            return self._to_yaml(cfg, resolve=resolve, sort_keys=sort_keys)
        if isinstance(content, list) or not content:
            return self._dumped(content)
        inner = content.get("hydra")
        if len(content) > 1 or not isinstance(inner, dict) or not inner:
            return "".join(self._section({key: value}) for key, value in content.items())
        below = (self._section({"hydra": {key: value}}) for key, value in inner.items())  # all of Hydra's own
        return "hydra:\n" + "".join(text.removeprefix("hydra:\n") for text in below)

    def _section(self, section: dict[str, Any]) -> str:
        told = repr(section)
        if told not in self._sections:
            if len(self._sections) >= SECTIONS:
                self._sections.clear()
            self._sections[told] = self._dumped(section)
        return self._sections[told]

    def _dumped(self, content: Any) -> str:
        return yaml.dump(content, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=self._dumper)


def _contents(node: Any) -> Any:
    """As `OmegaConf.to_container`, unresolved, with enumerations by their names."""
    state = node.__dict__
    match state.get("_content", state.get("_val")):
        case dict() as children:
            return {key.name if isinstance(key, Enum) else key: _contents(child) for key, child in children.items()}
        case list() as children:
            return [_contents(child) for child in children]
        case Enum() as value:
            return value.name
        case None | str() | int() | float() as value:  # a container too, where it is missing or an interpolation
            return value
        case Node() as child:  # of a union
            return _contents(child)
        case value:
            return value


class Loader(Protocol):
    """What is needed of Hydra's `ConfigLoader`."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig: ...

    def get_group_options(self, group_name: str) -> list[str]: ...


class Jobs:
    """Composes jobs as Hydra's own loader does, in a tenth of the time.

    For every job Hydra reads some twenty files, expands their defaults lists and merges them: 100 CPU ms. Only the choices of
    options need that. A job that differs in plain values (`optimizer.lr=1e-3 seed=1`) from one that was composed before is a
    copy of it with these values set, as Hydra sets them: after all else. What becomes of the files meanwhile is not seen.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._composed: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()
        self._is_group = functools.cache(lambda key: bool(loader.get_group_options(key)))

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra's `ConfigLoader` has it, errors included; the same master for all calls."""
        overrides = [_parsed(text) for text in sweep_overrides]
        values = self._values(overrides)
        shared = [each for each in overrides if each not in values or not each.key_or_group.startswith(_OF_THE_JOB)]
        kind = tuple(each.key_or_group if each in values else str(each.input_line) for each in shared)
        with suppress(OmegaConfBaseException):  # a value that does not fit: Hydra shall say so
            if kind not in self._composed:
                lines = [str(each.input_line) for each in shared]
                self._keep(kind, self._loader.load_sweep_config(master_config, lines), values)
            if kind in self._composed:
                self._composed.move_to_end(kind)
                job = copy.deepcopy(self._composed[kind])
                for value in values:
                    OmegaConf.update(job, value.key_or_group, value.value(), force_add=value.is_add())
                _tell(job, overrides, master_config)
                OmegaConf.copy_cache(from_config=master_config, to_config=job)
                return job
        return self._loader.load_sweep_config(master_config, sweep_overrides)

    @staticmethod
    def sweeps(text: str) -> bool:
        """Whether an override stands for several jobs, or for how they are run."""
        override = _parsed(text)
        return override.is_sweep_override() or override.is_hydra_override()

    def _keep(self, kind: tuple[str, ...], job: DictConfig, values: Sequence[Override]) -> None:
        """For jobs of the same options, unless one of the values is a whole part of the configuration."""
        if not any(OmegaConf.is_config(OmegaConf.select(job, value.key_or_group)) for value in values):
            self._composed[kind] = copy.deepcopy(_copied_fast(job))
            if len(self._composed) > KEPT:
                self._composed.popitem(last=False)

    def _values(self, overrides: Sequence[Override]) -> list[Override]:
        """Those that only set a value, in which nothing but a choice of an option has a say."""
        plain = [override for override in overrides if self._is_plain(override)]
        others = [each.key_or_group for each in overrides if each not in plain and not self._is_choice(each)]
        reached = tuple(f"{key}." for key in others)
        return [override for override in plain if not f"{override.key_or_group}.".startswith(reached)]

    def _is_choice(self, override: Override) -> bool:
        key = override.key_or_group  # to ask Hydra for the options of a key takes 50 ms
        return "/" in key or ("." not in key and self._is_group(key))

    def _is_plain(self, override: Override) -> bool:
        key = override.key_or_group
        if override.package is not None or self._is_choice(override) or isinstance(override.value(), dict | list):
            return False
        if "${" in str(override.input_line):  # Hydra 1.3 copies it into override_dirname, where it is resolved
            return False
        if key.startswith(_OF_THE_JOB):
            return override.type == OverrideType.ADD
        return override.type == OverrideType.CHANGE and not key.startswith("hydra.")


def _tell(job: DictConfig, overrides: Sequence[Override], master: DictConfig) -> None:
    """Record the overrides of a job where Hydra does."""
    task = [override for override in overrides if not override.is_hydra_override()]
    _write(job.hydra.overrides, "task", [str(override.input_line) for override in task])
    own = [override.input_line for override in overrides if override.is_hydra_override()]
    above = OmegaConf.to_container(master.hydra.overrides.hydra)  # reading them one by one would resolve ${oc.env:PASSWORD}
    assert isinstance(above, list)
    _write(job.hydra.overrides, "hydra", [*above, *own])
    if not OmegaConf.is_interpolation(job.hydra.job, "override_dirname"):  # Hydra 1.4 forms it when it is asked for
        form = job.hydra.job.config.override_dirname
        told = sorted(str(override.input_line) for override in task if override.key_or_group not in form.exclude_keys)
        job.hydra.job.override_dirname = form.item_sep.join(told).replace("=", form.kv_sep)


def _write(node: DictConfig, key: str, lines: list[Any]) -> None:
    """Set a list, of which most is there already, since to set a line takes as long as to read all of them."""
    there: Any = OmegaConf.to_container(node[key])
    if len(there) != len(lines):
        node[key] = lines
        return
    for i, line in enumerate(lines):
        if there[i] != line:
            node[key][i] = line


@functools.lru_cache(1024)  # a millisecond each; most are the same for all jobs
def _parsed(text: str) -> Override:
    return _parser().parse_override(text)


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()  # half of that millisecond
