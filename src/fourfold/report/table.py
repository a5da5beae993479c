"""The console's table: one row for each quadrant, one column for each strategy."""

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fourfold.report.wording import heading, spread
from fourfold.study.quadrants import Place, Study


def print_table(study: Study, console: Console | None = None) -> None:
    """Print test mean ± standard deviation of every cell, at the optimizer settings that validation chose.

    Where the console is too narrow for a column each, every strategy gets a row of its own.
    """
    console = console or Console()
    if not study.places:
        console.print("No run has finished yet.")
        return
    wide = wide_table(study)
    fits = Measurement.get(console, console.options.update(max_width=1000), wide).maximum <= console.width
    console.print(wide if fits else long_table(study))
    console.print(_legend(study), highlight=False, style="dim")


def wide_table(study: Study) -> Table:
    """One row for each place; best by validation is marked *, the textbook's choice T."""
    built = _empty(study)
    for strategy in study.strategies:
        built.add_column(strategy, justify="right", no_wrap=True)
    built.add_column("n", justify="right")
    for place in study.places:
        built.add_row(_name(place, study), *(_score(place, strategy) for strategy in study.strategies), _seeds(place))
    return built


def long_table(study: Study) -> Table:
    """One row for each strategy of each place."""
    built = _empty(study)
    built.add_column("strategy")
    built.add_column("test", justify="right", no_wrap=True)
    built.add_column("n", justify="right")
    for place in study.places:
        for index, cell in enumerate(place.cells):
            name = "" if index else _name(place, study)
            last = index == len(place.cells) - 1
            built.add_row(name, cell.strategy, _score(place, cell.strategy), str(cell.chosen.test.n), end_section=last)
    return built


def _empty(study: Study) -> Table:
    title = f"{study.name}: test score, mean ± std"
    built = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False, padding=(0, 0, 0, 1))
    built.add_column("quadrant" if all(place.quadrant for place in study.places) else "data")
    return built


def _name(place: Place, study: Study) -> str:
    name = heading(place, study)
    return name if place.metric.name == "acc" else f"{name} ({place.metric.label})"


def _score(place: Place, strategy: str) -> str:
    cell = place.cell(strategy)
    if cell is None:
        return ""
    textbook = place.verdict.textbook
    best = strategy == place.verdict.best
    marks = ("*" if best else " ") + ("T" if textbook and textbook.strategy == strategy else " ")
    text = f"{spread(cell.chosen.test, place.metric)}{marks}"
    return f"[bold]{text}[/bold]" if best else text


def _seeds(place: Place) -> str:
    counts = sorted({cell.chosen.test.n for cell in place.cells})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _legend(study: Study) -> str:
    marks = ["* best on validation"]
    if any(place.verdict.textbook for place in study.places):
        marks.append("T the textbook's choice")
    if any(place.metric.percent for place in study.places):
        marks.append("in percent")
    if any(place.metric.sign < 0 for place in study.places):
        marks.append("errors: less is better")
    return f"{' · '.join(marks)}; each at the optimizer settings chosen on validation"
