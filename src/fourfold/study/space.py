"""What a sweep asks for: cells, each a fixed configuration, and the space that is searched within each of them.

`freeze=a,b`, `choice()`, `range()` and `glob()` are cells, their product in Hydra's own order. `interval()` is searched, and so
is whatever is tagged: `tag(search, choice(16,32))`. Every cell gets the same space and the same budget, unless a condition
adds to the space of some.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Quote, QuotedString, Sweep, Transformer
from hydra.errors import HydraException

from fourfold import groups
from fourfold.config import ConfigError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TAGS = ("search", "log")
NAME_LENGTH = 80  # characters; a file name may have 255, and a run's folder holds more than the cell

Parse = Callable[[list[str]], list[Override]]


@dataclass(frozen=True)
class Cell:
    """One fixed configuration, and what is tried there."""

    name: str  # of the swept values alone; safe as a file name, no two cells of a sweep share it
    fixed: tuple[str, ...]  # overrides, the swept ones among them, as Hydra's basic sweeper would give them to a job
    points: tuple[dict[str, str], ...]  # tried first: key -> override; without a space they are all there is
    space: dict[str, "BaseDistribution"]  # key -> what is searched
    budget: int  # trials, points included


@dataclass(frozen=True)
class _Value:
    """One value of one key."""

    key: str  # with Hydra's prefix and package
    text: str  # that Hydra parses back to `value`
    value: Any
    swept: bool

    @property
    def override(self) -> str:
        return f"{self.key}={self.text}"


def read(
    overrides: Sequence[Override],
    *,
    n_trials: int,
    conditional: Sequence[Mapping[str, Any]] = (),
    enqueue: Sequence[Mapping[str, Any]] = (),
    chosen: Mapping[str, Any] | None = None,
    parse: Parse | None = None,
) -> list[Cell]:
    """The cells of a sweep, duplicates removed.

    Args:
        overrides: In the order of precedence: the last of a key counts, at the place of the first, as in Hydra.
        n_trials: The budget of each cell that has something to search; one that has not is a single run.
        conditional: Such as `{"when": {"optimizer": "sgd"}, "params": {"optimizer.momentum": "interval(0,0.99)"}}`: `params`
            join the cells where every key of `when` has the given value (or one of a list). What `overrides` name stays.
        enqueue: Points that every cell tries first, such as `{"optimizer.lr": 1e-3}`. Keys that a cell does not search are left
            out there; those that a point does not name are sampled.
        chosen: Values of keys that no override names, for `when`: what the configuration chooses by default.
        parse: Hydra's parser; one that knows the options of groups is needed for `glob()` in `conditional`.

    Raises:
        ConfigError: a range is empty or cannot be searched, a tag or a key is unknown, or a point lies outside the space.
    """
    parse = parse or OverridesParser.create().parse_overrides
    cells = []
    for fixed, space in _expanded(overrides):
        for more, also in _expanded(_due(conditional, fixed, space, chosen or {}, parse)):
            values, joint = (*fixed, *more), {**space, **also}
            points = _points(enqueue, joint, parse) if joint else ({},)
            name = _name([value for value in values if value.swept])
            cells.append(Cell(name, tuple(v.override for v in values), points, joint, n_trials if joint else 1))
    _refuse_unknown({_long(key) for point in enqueue for key in point}, {_bare(key) for cell in cells for key in cell.space})
    return cells


def written(overrides: Sequence[Override]) -> int:
    """How many combinations of fixed values are written; a value that is written twice counts twice."""
    last = {override.get_key_element(): override for override in overrides}
    axes = [override for override in last.values() if override.is_sweep_override() and not _is_searched(override)]
    return math.prod(sum(1 for _ in override.sweep_iterator()) for override in axes)


def to_overrides(params: Mapping[str, Any]) -> tuple[str, ...]:
    """What Optuna has chosen, as overrides; choices are texts of overrides already."""
    return tuple(f"{key}={value if isinstance(value, str) else Transformer.str(value)}" for key, value in params.items())


def params(space: Mapping[str, "BaseDistribution"], point: Mapping[str, str]) -> dict[str, Any]:
    """A cell's point as Optuna's parameters: the inverse of `to_overrides`."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    def typed(key: str, text: str) -> Any:
        if isinstance(space[key], CategoricalDistribution):
            return text
        return int(text) if isinstance(space[key], IntDistribution) else float(text)

    return {key: typed(key, override.removeprefix(f"{key}=")) for key, override in point.items()}


def holds(space: Mapping[str, "BaseDistribution"], key: str, override: str) -> bool:
    """Whether a value lies in what is searched."""
    try:
        value = params(space, {key: override})[key]
        return space[key]._contains(space[key].to_internal_repr(value))
    except ValueError:
        return False


def narrowed(space: Mapping[str, "BaseDistribution"], key: str, low: float, high: float) -> dict[str, "BaseDistribution"]:
    """The space with a range of numbers cut to what `low` to `high` has in common with it; left alone where that is nothing."""
    from optuna.distributions import FloatDistribution

    there = space.get(key)
    if not isinstance(there, FloatDistribution) or there.step is not None:
        return dict(space)
    least, most = max(low, there.low), min(high, there.high)
    return {**space, key: FloatDistribution(least, most, log=there.log)} if least < most else dict(space)


def corners(cell: Cell) -> Iterator[tuple[str, ...]]:
    """Overrides of the middle of a cell's space (or its first point), then with the ends and choices of each key in turn."""
    texts = {key: to_overrides({key: value})[0] for key, value in _middle(cell.space).items()}
    middle = {**texts, **(cell.points[0] if cell.space and cell.points else {})}
    yield (*cell.fixed, *middle.values())
    for key, distribution in cell.space.items():
        for end in _ends(distribution):
            yield (*cell.fixed, *{**middle, key: to_overrides({key: end})[0]}.values())


def grid(space: Mapping[str, "BaseDistribution"]) -> dict[str, list[Any]] | None:
    """Every value of every key, or None where one of them is continuous."""
    values = {key: _steps(distribution) for key, distribution in space.items()}
    return None if any(steps is None for steps in values.values()) else {key: steps or [] for key, steps in values.items()}


def _middle(space: Mapping[str, "BaseDistribution"]) -> dict[str, Any]:
    return {key: _ends(each)[0] if _is_choice(each) else _centre(each) for key, each in space.items()}


def _is_choice(distribution: Any) -> bool:
    return hasattr(distribution, "choices")


def _ends(distribution: Any) -> Sequence[Any]:
    return distribution.choices if _is_choice(distribution) else (distribution.low, distribution.high)


def _centre(distribution: Any) -> float:
    """Of a range of numbers, on the scale that it is searched on."""
    low, high = distribution.low, distribution.high
    centre = (low * high) ** 0.5 if distribution.log else (low + high) / 2
    if distribution.step is not None:
        centre = low + round((centre - low) / distribution.step) * distribution.step
    return centre


def _expanded(overrides: Sequence[Override]) -> Iterator[tuple[tuple[_Value, ...], dict[str, "BaseDistribution"]]]:
    """Every combination of the cells' values, the last key fastest, with what is searched."""
    last = {override.get_key_element(): override for override in overrides}
    space = {key: _distribution(override) for key, override in last.items() if _is_searched(override)}
    axes = [_values(override) for override in last.values() if not _is_searched(override)]
    for values in itertools.product(*axes):
        yield values, space


def _is_searched(override: Override) -> bool:
    """Whether a sampler chooses the values; refuses a tag that means nothing, for it may be a misspelt one that does."""
    value = override.value()
    if not isinstance(value, Sweep):
        return False
    for tag in value.tags - {*TAGS}:
        raise ConfigError(f"{override.input_line}: the tag {tag} is not one of {', '.join(TAGS)}{nearest(tag, TAGS)}")
    return isinstance(value, IntervalSweep) or bool(value.tags)


def _values(override: Override) -> list[_Value]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [_Value(key, override.get_value_element_as_str(), override.value(), swept=False)]
    values: dict[str, _Value] = {}
    for element in override.sweep_iterator():
        value = _plain(element)
        values.setdefault(repr(value), _Value(key, _text(element), value, swept=True))
    if not values:
        raise ConfigError(f"{override.input_line} has no values: give it some, or leave {override.key_or_group} out")
    return [*values.values()]


def _plain(element: Any) -> Any:
    """An element without the traces of its quotes."""
    return Override._convert_value(element)


def _text(element: Any) -> str:
    """An element as Hydra parses it back: a text that `choice()` or `str()` has taken the quotes from gets them again."""
    text = Transformer.str(element)
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return Transformer.str(_quoted(element))
    return text if repr(parsed) == repr(_plain(element)) else Transformer.str(_quoted(element))


def _quoted(element: Any) -> Any:
    if isinstance(element, list):
        return [_quoted(each) for each in element]
    if isinstance(element, dict):
        return {key: _quoted(each) for key, each in element.items()}
    return QuotedString(element, Quote.single) if isinstance(element, str) else element


def _distribution(override: Override) -> "BaseDistribution":
    """What Optuna samples; integers where both ends are, as upstream's Optuna sweeper has it (`int(interval(1,5))`)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep, line = override.value(), override.input_line
    log = isinstance(sweep, Sweep) and "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep) or override.is_choice_sweep():
        if log:
            raise ConfigError(f"{line}: the tag log is for numbers between two bounds: use interval(), or the tag search")
        return CategoricalDistribution([value.text for value in _values(override)])
    if isinstance(sweep, IntervalSweep):
        low, high, step = sweep.start, sweep.end, None
    else:
        steps = [value.value for value in _values(override)]
        low, high, step = min(steps), max(steps), abs(sweep.step)  # type: ignore[union-attr]
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not low < high:
        raise ConfigError(f"{line} has nothing to search: give two bounds, the smaller one first")
    if log and not low > 0:
        raise ConfigError(f"{line}: the tag log needs bounds above 0, but the smaller one is {low}")
    if log and step not in (None, 1):
        raise ConfigError(f"{line}: the tag log goes with no step but 1: use interval()")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=None if step is None or log else float(step))


def _steps(distribution: "BaseDistribution") -> list[Any] | None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return [*distribution.choices]
    if isinstance(distribution, IntDistribution):
        return [*range(distribution.low, distribution.high + 1, distribution.step)]
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        low, high, step = (Decimal(str(number)) for number in (distribution.low, distribution.high, distribution.step))
        return [float(low + i * step) for i in range(int((high - low) / step) + 1)]
    return None


def _due(
    conditional: Sequence[Mapping[str, Any]],
    fixed: Sequence[_Value],
    space: Mapping[str, Any],
    chosen: Mapping[str, Any],
    parse: Parse,
) -> list[Override]:
    """The overrides of the conditions that hold in a cell, without those of keys that it has."""
    searched = {_bare(key) for key in space}
    known = {**{_long(key): value for key, value in chosen.items()}, **{_bare(v.key): v.value for v in fixed}}
    given = searched | {_bare(value.key) for value in fixed}
    texts = []
    for condition in conditional:
        if {*condition} != {"when", "params"}:
            raise ConfigError(f"hydra.sweeper.conditional has {', '.join(condition)} in a condition: give when and params")
        for key in map(_long, condition["when"]):
            if key in searched:
                raise ConfigError(f"hydra.sweeper.conditional depends on {key}, which is searched: give its values with commas")
        if all(_is_met(known.get(_long(key)), wanted) for key, wanted in condition["when"].items()):
            texts += [f"{_long(key)}={value}" for key, value in condition["params"].items()]
    return [override for override in parse(texts) if override.key_or_group not in given]


def _is_met(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else bool(value == wanted)


def _points(
    enqueue: Sequence[Mapping[str, Any]], space: Mapping[str, "BaseDistribution"], parse: Parse
) -> tuple[dict[str, str], ...]:
    """What a cell tries first of the points that are given: those values that it searches."""
    keys = {_bare(key): key for key in space}
    points: dict[str, dict[str, str]] = {}
    for given in enqueue:
        texts = {keys[_long(key)]: _text(_element(value, parse)) for key, value in given.items() if _long(key) in keys}
        point = {key: f"{key}={text}" for key, text in texts.items()}
        for key, override in point.items():
            _refuse_outside(key, override, space)
        if point:
            points.setdefault(repr(point), point)
    return tuple(points.values())


def _element(value: Any, parse: Parse) -> Any:
    """A value of YAML as an element of an override: texts are read as on the command line."""
    return parse([f"key={value}"])[0]._value if isinstance(value, str) else value


def _refuse_outside(key: str, override: str, space: Mapping[str, "BaseDistribution"]) -> None:
    if not holds(space, key, override):
        raise ConfigError(f"search.enqueue has {override}, but the search is over {space[key]}: move one of the two")


def _refuse_unknown(named: set[str], searched: set[str]) -> None:
    for key in sorted(named - searched if searched else ()):
        raise ConfigError(f"search.enqueue names {key}, which no cell searches{nearest(key, searched)}")


def _bare(key: str) -> str:
    """A key without Hydra's prefix."""
    return key.lstrip("+~")


def _long(key: str) -> str:
    """A key in canonical spelling: `freeze.blocks` is `freeze_strategy.blocks`."""
    short, long = groups.FREEZE
    return re.sub(rf"^{short}(?=[.@]|$)", long, key)


def _name(swept: Sequence[_Value]) -> str:
    """`freeze_strategy=full,seed=1`; where that is too long or not safe in a path, shortened, with a hash of the whole.

    It depends on nothing but the values themselves, so that a sweep with one more value names its old cells as before.
    """
    short = [_bare(value.key).rpartition(".")[2] for value in swept]
    keys = short if len({*short}) == len(short) else [_bare(value.key) for value in swept]
    exact = ",".join(f"{key}={value.text}" for key, value in zip(keys, swept, strict=True))
    safe = ",".join(f"{key}={_safe(value.text)}" for key, value in zip(map(_safe, keys), swept, strict=True))
    if safe != exact or len(safe) > NAME_LENGTH:
        digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
        return f"{safe[: NAME_LENGTH - len(digest) - 1]}-{digest}"
    return safe or "all"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)
