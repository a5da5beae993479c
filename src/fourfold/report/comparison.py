"""Two studies side by side: in each place that both have, what became better, and how surely."""

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fourfold.records import asdict
from fourfold.report.wording import heading, headline, p_value, several, short, signed, signed_interval, spread
from fourfold.study.cells import Cell, pair
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study
from fourfold.study.statistics import LEVEL, Difference, Estimate, holm, paired_difference, unpaired_difference


@dataclass(frozen=True)
class Change:
    """One strategy in one place of both studies; each at the settings that its own validation chose."""

    place: str
    strategy: str
    metric: Metric
    first: Estimate
    second: Estimate
    difference: Difference | None  # second minus first, turned so that positive is better
    paired: bool  # by seed and images; else as independent runs
    p_holm: float | None

    @property
    def status(self) -> str:
        """better | worse | same (not shown to differ, or by less than a point) | unknown."""
        if self.difference is None or self.p_holm is None:
            return "unknown"
        mean = self.difference.estimate.mean
        if self.p_holm >= LEVEL or abs(mean) < self.metric.margin:
            return "same"
        return "better" if mean > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """What two studies have in common, and what only one of them has."""

    names: tuple[str, str]
    changes: tuple[Change, ...]
    verdicts: tuple[tuple[str, str, str], ...]  # place, headline in the first, headline in the second
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(first: Study, second: Study) -> Comparison:
    """Match places by their data, size and model, and strategies by name; p-values are corrected over all of them (Holm)."""
    others = {_key(place): place for place in second.places}
    both = [(place, others[_key(place)]) for place in first.places if _key(place) in others]
    matched = [
        (ours, mine, theirs)
        for ours, other in both
        if ours.metric == other.metric
        for mine in ours.cells
        if (theirs := other.cell(mine.strategy)) is not None
    ]
    differences = [_difference(mine, theirs, place.metric) for place, mine, theirs in matched]
    known = {index: each.p for index, (each, _) in enumerate(differences) if each is not None and each.p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    changes = [
        Change(
            heading(place, first), mine.strategy, place.metric, mine.chosen.test, theirs.chosen.test, *differences[index],
            corrected.get(index),
        )
        for index, (place, mine, theirs) in enumerate(matched)
    ]  # fmt: skip
    seen = {_key(place) for place, _ in both}
    return Comparison(
        names=_names(first, second),
        changes=tuple(changes),
        verdicts=tuple((heading(ours, first), headline(ours), headline(other)) for ours, other in both),
        only_first=tuple(heading(place, first) for place in first.places if _key(place) not in seen),
        only_second=tuple(heading(place, second) for place in second.places if _key(place) not in seen),
    )


def markdown(comparison: Comparison) -> str:
    """The whole comparison as text."""
    first, second = comparison.names
    lines = [f"# {first} and {second}", "", f"{_summary(comparison)}", ""]
    if comparison.changes:
        lines += [
            f"| place | strategy | {first} | {second} | difference | 95 % interval | p | |",
            "|---|---|--:|--:|--:|--:|--:|---|",
            *(f"| {' | '.join(_row(change))} |" for change in comparison.changes),
            "",
        ]
        lines += [
            "Differences are second minus first, paired by seed and images where both had them (=); p after Holm.",
            "",
        ]
    lines += [f"- {place}: {ours}; then {theirs}" for place, ours, theirs in comparison.verdicts]
    lines += [f"- only in {first}: {place}" for place in comparison.only_first]
    lines += [f"- only in {second}: {place}" for place in comparison.only_second]
    return "\n".join(lines) + "\n"


def plain(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as plain values; fractions stay 0 to 1."""
    return asdict(comparison) | {"summary": _summary(comparison), "statuses": [change.status for change in comparison.changes]}


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print it as a table."""
    console = console or Console()
    first, second = comparison.names
    if comparison.changes:
        console.print(f"A: {first}; B: {second}", highlight=False, markup=False)
    for place in dict.fromkeys(change.place for change in comparison.changes):
        rows = [_row(change)[1:] for change in comparison.changes if change.place == place]
        built = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=escape(place), title_justify="left")
        built.add_column("", min_width=max(len(change.strategy) for change in comparison.changes))
        for title in ("A", "B", "B − A", "95 % interval", "p"):
            built.add_column(title, justify="right", no_wrap=True)
        built.add_column("")
        for row in rows:
            built.add_row(*map(escape, row))
        console.print(built)
    console.print(_summary(comparison), highlight=False)
    for place, ours, theirs in comparison.verdicts:
        if ours != theirs:
            console.print(f"{place}: {ours}; then {theirs}.", highlight=False)
    for name, places in zip(comparison.names, (comparison.only_first, comparison.only_second), strict=True):
        if places:
            console.print(f"Only in {name}: {', '.join(places)}.", highlight=False, style="dim")


def _summary(comparison: Comparison) -> str:
    if not comparison.changes:
        return "The two studies have no place and strategy in common: there is nothing to compare."
    counts = {
        word: sum(change.status == word for change in comparison.changes) for word in ("better", "worse", "same", "unknown")
    }
    first, second = comparison.names
    said = [
        f"{second} against {first}, {several(len(comparison.changes), 'cell')}: {counts['better']} better, "
        f"{counts['worse']} worse, {counts['same']} not shown to differ"
    ]
    if counts["unknown"]:
        said.append(f"{counts['unknown']} with too few seeds to tell")
    return f"{', '.join(said)}."


def _row(change: Change) -> list[str]:
    metric = change.metric
    value = change.difference.estimate if change.difference else None
    return [
        change.place,
        change.strategy,
        spread(change.first, metric),
        spread(change.second, metric),
        signed(value.mean, metric) if value else short(change.second.mean - change.first.mean, metric),
        signed_interval(value, metric) if value else "",
        p_value(change.p_holm),
        {"same": "", "unknown": "?"}.get(change.status, change.status) + (" =" if change.paired else ""),
    ]


def _difference(first: Cell, second: Cell, metric: Metric) -> tuple[Difference | None, bool]:
    ours, theirs = (
        {pair(run): metric.sign * run.test[metric.name] for run in cell.chosen.runs if math.isfinite(run.test[metric.name])}
        for cell in (first, second)
    )
    if len(ours.keys() & theirs.keys()) >= 2:
        return paired_difference(theirs, ours), True
    return unpaired_difference([*theirs.values()], [*ours.values()]), False


def _key(place: Place) -> tuple[object, ...]:
    return place.quadrant.name if place.quadrant else None, place.dataset, place.train_size, place.model, place.variant


def _names(first: Study, second: Study) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    ours, theirs = first.folder.resolve(), second.folder.resolve()
    return (ours.name, theirs.name) if ours.name != theirs.name else (str(first.folder), str(second.folder))
