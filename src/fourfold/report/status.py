"""How a study stands, on the console: what became of its runs, the best of each cell, and how to repeat what failed."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fourfold.study.digest import HEADINGS, Digest, digest, score, told_time, write
from fourfold.study.trials import TrialView

COLOURS = {"done": "green", "pruned": "cyan", "failed": "red", "interrupted": "yellow", "unfinished": "yellow"}
TOLD = {"failed": 20, "interrupted": 10, "unfinished": 10, "pruned": 5}  # at most so many lines of each; the file has all
REPEATED = frozenset({"failed", "interrupted", "unfinished"})  # shown with the command that repeats the run alone


def show(folder: Path, trials: Sequence[TrialView] = (), console: Console | None = None) -> Digest:
    """Print how the study in `folder` stands, and write it down as `summary.json` and `summary.md`, if the folder lets us."""
    console = console or Console()
    found = digest(folder, trials)
    if not found.runs:
        console.print(f"No run has begun in {folder}.", highlight=False, markup=False, soft_wrap=True)
        return found
    print_digest(found, console)
    try:
        console.print(f"All runs, each with its command: {write(found)}", highlight=False, soft_wrap=True)
    except OSError as error:  # somebody else's study
        console.print(f"Not written down: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return found


def print_digest(found: Digest, console: Console) -> None:
    """Print counts, the best of each cell, and a line for each run that needs a look."""
    console.print(_counts(found), soft_wrap=True)
    console.print(told_time(found), highlight=False)
    if found.best:
        console.print()
        console.print(_best(found))
    for state, most in TOLD.items():
        _print_runs(found, state, most, console)
    console.print()


def _counts(found: Digest) -> Text:
    text = Text.assemble((found.name, "bold"), ": ")
    parts = [Text(f"{number} {state}", COLOURS.get(state, "")) for state, number in found.counts.items()]
    return text + Text(", ").join(parts)


def _best(found: Digest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("best of each cell")
    table.add_column("on validation", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    table.add_column("at")
    for each in found.best:
        table.add_row(each.cell, f"{each.metric} {score(each.value)}", str(each.seeds), each.setting)
    return table


def _print_runs(found: Digest, state: str, most: int, console: Console) -> None:
    runs = found.of(state)
    if not runs:
        return
    console.print()
    console.print(HEADINGS[state], style=COLOURS[state])
    for run in runs[:most]:
        console.print(f"  {run.line}", highlight=False, markup=False, soft_wrap=True)
        if state in REPEATED and run.command:
            console.print(f"    {run.command}", style="dim", highlight=False, markup=False, soft_wrap=True)
    if len(runs) > most:
        console.print(f"  and {len(runs) - most} more", style="dim")
