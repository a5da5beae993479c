"""What Hydra and OmegaConf refuse, said in one sentence: the key, the value, what is allowed, the nearest name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from fourfold import groups
from fourfold.config import ConfigError, RunConfig, nearest

COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
)  # ValueError: ConfigError, and Hydra's own


def explain(error: BaseException, overrides: Sequence[str] = (), dirs: Sequence[Path] = ()) -> str:
    """One sentence for any error of a composition.

    Args:
        error: As raised, with its causes.
        overrides: What the user typed, in canonical spelling: the source of the value in the sentence.
        dirs: The folders with options, the package's own first.
    """
    chain = list(_causes(error))
    where = next((_where(each) for each in chain if _where(each)), "")
    for each in reversed(chain):  # the innermost cause knows the key and the value
        sentence = _sentence(each, overrides, dirs)
        if sentence:
            return where + sentence
    return where + " ".join(str(error).split())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _where(error: BaseException) -> str:
    """The option file that an error comes from, unless it is the root config."""
    found = re.match(r"In '([^']+)'", str(error))
    return f"in {found[1]}.yaml: " if found and found[1] != "config" else ""


def _sentence(error: BaseException, overrides: Sequence[str], dirs: Sequence[Path]) -> str | None:
    message = str(error)
    match error:
        case ConfigError():
            return message
        case OverrideParseException():
            return _bad_syntax(error.override)
        case MissingConfigException():
            return _no_such_option(error, dirs)
        case yaml.YAMLError():
            return " ".join(message.split())
        case InterpolationKeyError():
            return _no_such_interpolation(error)
        case ConfigKeyError() | ConfigAttributeError():
            return unknown_key(error.full_key or str(error.key), overrides, dirs)
        case MissingMandatoryValue():
            return _no_value(error)
        case ValidationError():
            return _wrong_type(error, overrides)
    if found := re.search(
        r"Could not (?:override|delete) '([^'=]+)|"
        r"Could not delete from config. '([^']+)' does|"
        r"Invalid Defaults List override '/?([^':]+)",  # Hydra 1.4
        message,
    ):
        return unknown_key(found[1] or found[2] or found[3], overrides, dirs)
    if found := re.search(r"Error merging override (~.+)", message):
        return f"{found[1]} would leave the key without a value: give {found[1][1:].partition('=')[0]}=VALUE"
    if "Config group override must be a string" in message:
        return _no_option_at_all(overrides, dirs)
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", message):
        return _several_values(found[1])
    if found := re.search(r"Recursive interpolation detected\s+full_key: (\S+)", message):
        return f"{found[1]} refers to itself: give {found[1]}=VALUE"
    if found := re.search(r"Multiple values for ([^\s.]+)\. To override a value use 'override [^:]+: (.+)'", message):
        return f"{found[1]} is chosen twice, {found[2]} among them: in a defaults list write `override /{found[1]}: OPTION`"
    return None


def _bad_syntax(override: str) -> str:
    if "=" not in override:
        return f"{override!r} is neither a command nor KEY=VALUE: `fourfold --help` shows both"
    key, _, value = override.partition("=")
    return f"{key}={value} cannot be read: quote a value with special characters, as in '{key}=\"{value}\"'"


def _several_values(override: str) -> str:
    key, _, values = override.partition("=")
    as_one = f", or write {key}=[{values}] for one list" if "a list" in in_words(_hint(key.split("."))) else ""
    return f"{override} lists several values: add -m to run each of them{as_one}"


def _no_such_option(error: MissingConfigException, dirs: Sequence[Path]) -> str:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.partition("/")
    if not name:
        return f"there is no config named {group}.yaml in the configuration folders: give --config-dir, or --config-name=config"
    known = groups.options(dirs)
    if group in known:  # with those in folders of their own, which Hydra does not list
        return _not_among(group, name, [*known[group]])
    group, _, name = missing.rpartition("/")
    return _not_among(group, name, sorted(set(error.options or ())))


def _no_option_at_all(overrides: Sequence[str], dirs: Sequence[Path]) -> str | None:
    known = groups.options(dirs)
    given = (override.partition("=") for override in overrides)
    return next(
        (_not_among(key, name, [*known[key]]) for key, _, name in given if key in known and name not in known[key]), None
    )


def _not_among(group: str, name: str, options: Sequence[str]) -> str:
    short = groups.FREEZE[0] if group == groups.FREEZE[1] else group
    return f"{short}={name} is not an option of {group} ({', '.join(options)}){nearest(name, options)}"


def _no_such_interpolation(error: InterpolationKeyError) -> str:
    found = re.search(r"Interpolation key '([^']+)' not found", str(error))
    name = found[1] if found else "?"
    known = _leaves(RunConfig)
    if name in known:  # it was taken away
        return f"{name} has no value: give {name}=VALUE"
    key = f"{error.full_key}=" if error.full_key else ""
    close = nearest(name, known) or ": name an existing one"
    return f"{key}${{{name}}} refers to a key that does not exist{close}"


def unknown_key(key: str, overrides: Sequence[str] = (), dirs: Sequence[Path] = ()) -> str:
    """The sentence for a key that the schema does not have."""
    given = next((each for each in overrides if re.match(rf"(\+\+|\+|~)?{re.escape(key)}(=|@|$)", each)), key)
    sweeper, _, name = key.rpartition(".")
    if sweeper == "hydra.sweeper":
        known = [*yaml.safe_load((groups.conf_dir() / "hydra/sweeper/fourfold.yaml").read_text(encoding="utf-8"))]
        known.remove("_target_")
        return f"sweep.{given.rpartition('sweeper.')[2]} names no key of sweep ({', '.join(known)}){nearest(name, known)}"
    if key.split(".")[0] == "hydra":
        return f"{given} names no key of Hydra's own configuration: `fourfold --cfg hydra` shows it"
    parts = key.split("@")[0].split(".")
    depth = next(depth for depth in range(len(parts) - 1, -1, -1) if _hint(parts[:depth]) is not None)
    here, name = ".".join(parts[:depth]), parts[depth]
    if here and not is_dataclass(_hint(parts[:depth])):
        return _one_value(given, here)
    children = sorted({*groups.options(dirs), *_children(RunConfig)}) if not here else _children(_hint(parts[:depth]))
    prefix = f"{here}." if here else ""
    elsewhere = [leaf for leaf in _leaves(RunConfig) if leaf.rpartition(".")[2] == name]
    close = (
        f", did you mean {' or '.join(elsewhere)}?"
        if elsewhere
        else nearest(prefix + name, [prefix + each for each in children])
    )
    return f"{given} names no key{f' of {here}' if here else ' or group'} ({', '.join(children)}){close}"


def _one_value(given: str, key: str) -> str:
    cure = f"give +{given.lstrip('+')} to add a key" if _hint(key.split(".")) == dict[str, Any] else f"give {key}=VALUE"
    return f"{given} cannot be set, because {key} has no such key: {cure}"


def _no_value(error: MissingMandatoryValue) -> str:
    found = re.search(r"issing mandatory value: (\S+)", str(error))
    key = error.full_key or (found[1] if found else "a key")
    return f"{key} has no value: give {key}=VALUE"


def _wrong_type(error: ValidationError, overrides: Sequence[str]) -> str | None:
    key = re.sub(r"\[\d+\]$", "", error.full_key or "")
    hint = _hint(key.split(".")) if key else None
    if hint is None:
        return None
    deeper = next((each for each in overrides if each.lstrip("+").startswith(f"{key}.")), None)
    if deeper is not None:
        return _one_value(deeper, key)
    found = re.search(r"Value '(.*?)'", str(error), re.DOTALL)
    seen = f"{key}={found[1]}" if found else key
    given = next((each for each in overrides if each.lstrip("+").startswith(f"{key}=")), seen)
    return f"{given} has the wrong type: give {in_words(hint)}"


def _hint(parts: Sequence[str]) -> Any:
    """The type that the schema gives to a key, or None for one that it does not know."""
    hint: Any = RunConfig
    for part in parts:
        hint = get_type_hints(hint).get(part) if is_dataclass(hint) else None
    return hint


def _children(hint: Any) -> list[str]:
    return [*get_type_hints(hint)]


def _leaves(kind: Any, prefix: str = "") -> list[str]:
    """Every full key of the schema that holds a value."""
    found = []
    for name, hint in get_type_hints(kind).items():
        found += _leaves(hint, f"{prefix}{name}.") if is_dataclass(hint) else [prefix + name]
    return found


def in_words(hint: Any) -> str:
    """What to write for a type, in words."""
    if get_origin(hint) is Union:
        return " or ".join(in_words(kind) for kind in get_args(hint))
    if get_origin(hint) is list:
        return (
            f"a list such as [{'1, 2' if get_args(hint)[0] is int else '0.5, 0.75' if get_args(hint)[0] is float else 'a, b'}]"
        )
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return plain.get(hint, "keys in braces, such as {a: 1}")
