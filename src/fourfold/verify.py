"""`fourfold verify reproduce/NAME`: published figures beside what was measured here, with pass, fail or not run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fourfold.compose import canonical, composed, explained, to_run_config
from fourfold.config import ConfigError, RunConfig
from fourfold.placement import FILE
from fourfold.study.metric import metric_of
from fourfold.study.results import Result, collect

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
TRAINED = "test/"  # what begins so was measured by runs; what does not, without training
SOURCE = "source"  # the axis of a distance that names the other data set


@dataclass(frozen=True)
class Check:
    """One figure of a published table, or one order of several."""

    title: str
    expected: float
    low: float  # from which it passes
    high: float  # up to which
    measured: float | None
    n: int  # runs, or figures that are ordered
    why: str = ""  # it was not run

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_RUN
        return PASS if self.low <= self.measured <= self.high else FAIL


@dataclass(frozen=True)
class Table:
    """Published figures, as an experiment's `reproduce.tables` has them. `docs/reproduce.md` tells the keys."""

    name: str
    measure: str
    axes: tuple[str, ...]
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    over: tuple[str, tuple[str, ...]] | None
    below: float
    above: float
    order: float | None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Table":
        known = {"name", "measure", "axes", "values", "given", "over", "below", "above", "order"}
        if not {"name", "measure", "axes", "values"} <= {*told} <= known:
            raise ConfigError(f"reproduce.tables has {', '.join(told)} in a table: give name, measure, axes and values, and of "
                              f"{', '.join(sorted(known))} what else is needed")  # fmt: skip
        over = told.get("over")
        return cls(
            name=told["name"],
            measure=told["measure"],
            axes=tuple(told["axes"]),
            values=told["values"],
            given=told.get("given") or {},
            over=(over["key"], tuple(over["values"])) if over else None,
            below=float(told.get("below", 0)),
            above=float(told.get("above", 0)),
            order=told.get("order"),
        )

    def cells(self) -> Iterator[tuple[dict[str, Any], float]]:
        """(key -> value of every axis, the published figure)."""
        yield from _leaves(self.values, self.axes)


def _leaves(values: Mapping[str, Any], axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], float]]:
    for value, rest in values.items():
        here = {axes[0]: value}
        if len(axes) == 1:
            yield here, float(rest)
        else:
            yield from (({**here, **more}, figure) for more, figure in _leaves(rest, axes[1:]))


def tables_of(config: RunConfig, experiment: str) -> list[Table]:
    """The tables of an experiment.

    Raises:
        ConfigError: it has none, or one of them lacks a key.
    """
    if not config.reproduce.tables:
        raise ConfigError(f"experiment={experiment} has no published figures to be held against: choose one of reproduce/...")
    return [Table.of(each) for each in config.reproduce.tables]


def checks(experiment: str, overrides: Sequence[str] = (), dirs: Sequence[Path] = ()) -> tuple[RunConfig, list[Check]]:
    """Every figure of an experiment's tables, with what its study has measured; runs nothing.

    Args:
        experiment: Such as `reproduce/kornblith12`.
        overrides: Such as `paths.outputs=...`.
        dirs: Folders with the user's own options.
    """
    config = configured([f"experiment={experiment}", *overrides], dirs)
    folder = Path(config.paths.outputs) / config.study
    runs = collect(folder) if folder.is_dir() else []
    found: list[Check] = []
    for table in tables_of(config, experiment):
        found += _checked(table, runs, folder, [f"experiment={experiment}", *overrides], dirs)
    return config, found


def configured(words: Sequence[str], dirs: Sequence[Path]) -> RunConfig:
    """The run of some words, in whatever form they come."""
    with explained(words, dirs):
        return to_run_config(composed(canonical(words), dirs))


def _checked(table: Table, runs: Sequence[Result], folder: Path, words: Sequence[str], dirs: Sequence[Path]) -> list[Check]:
    got = []
    for keys, figure in table.cells():
        wanted = {**table.given, **keys}
        measured: float | None
        if table.measure.startswith(TRAINED):
            measured, n, why = _of_runs(runs, wanted, table)
        else:
            measured, n, why = _without_training(table.measure, wanted, folder, words, dirs)
        got.append((keys, figure, measured, n, why))
    if table.order is None:
        return [
            Check(f"{table.name}: {said(keys)}", figure, figure - table.below, figure + table.above, measured, n, why)
            for keys, figure, measured, n, why in got
        ]
    return [_order(table, row, [each for each in got if each[0][table.axes[0]] == row]) for row in _rows(table)]


def _rows(table: Table) -> list[str]:
    """Orders are of the last axis, for each value of the first; with one axis there is one order."""
    return [""] if len(table.axes) == 1 else [*table.values]


def _order(table: Table, row: str, got: Sequence[tuple[dict[str, Any], float, float | None, int, str]]) -> Check:
    from scipy.stats import spearmanr

    there = [(figure, measured) for _, figure, measured, _, _ in got if measured is not None]
    title = f"{table.name}: rank correlation" + (f", {row}" if row else "")
    if len(there) < len(got):
        missing = [said(keys) for keys, _, measured, _, _ in got if measured is None]
        return Check(title, 1.0, float(table.order or 0), 1.0, None, len(there), f"without {', '.join(missing)}")
    return Check(title, 1.0, float(table.order or 0), 1.0, float(spearmanr(*zip(*there, strict=True))[0]), len(there))


def said(keys: Mapping[str, Any]) -> str:
    """The values of keys as people speak of them."""
    return " ".join(str(value) if key in ("dataset", "freeze_strategy", SOURCE) else f"{key.rpartition('.')[2]}={value}"
                    for key, value in keys.items())  # fmt: skip


def _of_runs(runs: Sequence[Result], wanted: Mapping[str, Any], table: Table) -> tuple[float | None, int, str]:
    """The mean test figure over the seeds of the settings that were best on validation; of several data sets their mean."""
    if table.over is None:
        return _best(runs, wanted, table.measure.removeprefix(TRAINED))
    key, values = table.over
    each = [_best(runs, {**wanted, key: value}, table.measure.removeprefix(TRAINED)) for value in values]
    missing = [value for value, (figure, _, _) in zip(values, each, strict=True) if figure is None]
    if missing:
        return None, 0, f"without {', '.join(missing)}"
    return mean(figure for figure, _, _ in each if figure is not None), sum(n for _, n, _ in each), ""


def _best(runs: Sequence[Result], wanted: Mapping[str, Any], metric: str) -> tuple[float | None, int, str]:
    here = [run for run in runs if all(_is(run.config, key, value) for key, value in wanted.items()) and metric in run.test]
    if not here:
        return None, 0, ""
    chosen = metric_of(here)
    settings = [_without_seed(run) for run in here]
    kinds = {kind: [run for run, of in zip(here, settings, strict=True) if of == kind] for kind in settings}
    best = max(kinds.values(), key=lambda same: chosen.sign * mean(run.val[chosen.name] for run in same))
    return mean(run.test[metric] for run in best), len(best), ""


def _without_seed(run: Result) -> str:
    return repr(sorted(run.optimizer.items()))


def _is(config: Mapping[str, Any], key: str, wanted: Any) -> bool:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):  # of a group, the name of its option
        value = value.get("name")
    return bool(value == wanted) or str(value) == str(wanted)


def _without_training(
    measure: str, wanted: Mapping[str, Any], folder: Path, words: Sequence[str], dirs: Sequence[Path]
) -> tuple[float | None, int, str]:
    from fourfold.place import already
    from fourfold.resemblance import known

    config = configured([*words, *overrides_of(wanted)], dirs)
    if measure == "similarity":
        source = configured([*words, *overrides_of({**wanted, "dataset": wanted[SOURCE]})], dirs)
        value = known(source, config, folder)
        return value, int(value is not None), ""
    found = already(config, dirs, folder / FILE)
    if found is None:
        return None, 0, ""
    return {"logme": found.logme, "lift": found.lift.value}[measure], found.seen, ""


def overrides_of(wanted: Mapping[str, Any]) -> list[str]:
    """Keys and values of a table as overrides."""
    return [f"{key}={'null' if value is None else value}" for key, value in wanted.items() if key != SOURCE]


def measure_all(experiment: str, overrides: Sequence[str] = (), dirs: Sequence[Path] = ()) -> bool:
    """Measure what an experiment's tables ask for that needs no training, and has not been measured yet.

    Returns:
        Whether there is anything of that kind; what is left are runs.
    """
    words = [f"experiment={experiment}", *overrides]
    config = configured(words, dirs)
    tables = [table for table in tables_of(config, experiment) if not table.measure.startswith(TRAINED)]
    for table in tables:
        for keys, _ in table.cells():
            _measure(table, {**table.given, **keys}, words, dirs, Path(config.paths.outputs) / config.study)
    return bool(tables)


def _measure(table: Table, wanted: Mapping[str, Any], words: Sequence[str], dirs: Sequence[Path], folder: Path) -> float | None:
    from fourfold.place import placed
    from fourfold.resemblance import remembered

    config = configured([*words, *overrides_of(wanted)], dirs)
    if table.measure == "similarity":
        source = configured([*words, *overrides_of({**wanted, "dataset": wanted[SOURCE]})], dirs)
        return remembered(source, config, folder)
    return placed(config, dirs, folder / FILE).logme


def show(config: RunConfig, found: Sequence[Check]) -> bool:
    """Print the table; returns whether nothing that was run has failed."""
    rows = [("", "published", "passes", "measured", "n", "")]
    for check in found:
        measured = "" if check.measured is None else f"{check.measured:.3f}"
        passes = f"{check.low:.3f} to {check.high:.3f}"
        note = f"{check.verdict} ({check.why})" if check.why else check.verdict
        rows.append((check.title, f"{check.expected:.3f}", passes, measured, str(check.n or ""), note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    counts = {verdict: sum(check.verdict == verdict for check in found) for verdict in (PASS, FAIL, NOT_RUN)}
    print(f"\n{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}. Published: {config.reproduce.source}")
    return not counts[FAIL]
