"""`fourfold plan`: what a sweep would run, what of it is done, how much learns, and how long it takes. Runs nothing."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from rich import box
from rich.console import Console
from rich.table import Table

from fourfold import multirun
from fourfold.checks import seconds as parsed_seconds
from fourfold.compose import ROOT, explained, hydra_ready, searchpath
from fourfold.config import ConfigError, RunConfig
from fourfold.estimate import Estimate
from fourfold.prospects import Prospect, prospects
from fourfold.study import space
from fourfold.study.ledger import finished, view
from fourfold.study.preflight import told, trying
from fourfold.study.results import Result, read_result
from fourfold.study.storage import beside, existing

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper

STEPS = 4  # of each phase of each set-up, of which the first is not timed
PIPED_WIDTH = 120  # columns where there is no terminal to ask


@dataclass(frozen=True)
class Row:
    """Cells that differ in nothing but seeds and the numbers of the optimizer."""

    name: str
    runs: int
    done: int
    trainable: int | None  # parameters that ever learn
    seconds: float | None  # of one run: at most, or measured where all are done
    shared_seconds: float  # besides, once for all of them
    failure: str | None  # why none of them can run

    @property
    def left(self) -> int:
        return self.runs - self.done

    @property
    def seconds_left(self) -> float:
        return self.left * (self.seconds or 0.0) + (self.shared_seconds if self.left else 0.0)


@dataclass(frozen=True)
class Outlook:
    """A sweep before it is run."""

    folder: Path
    rows: tuple[Row, ...]
    duplicates: int  # combinations that are written, but are runs that stand here already
    workers: int
    timeout: float | None  # seconds

    @property
    def seconds_left(self) -> float:
        """With all workers at it; no run is shared between them."""
        longest = max(((row.seconds or 0.0) + row.shared_seconds for row in self.rows if row.left), default=0.0)
        return max(sum(row.seconds_left for row in self.rows) / self.workers, longest)


def show(overrides: Sequence[str], dirs: Sequence[Path] = (), config_name: str = ROOT, console: Console | None = None) -> None:
    """Print the table. Nothing is written; weights and images that are not here yet are fetched, as the sweep would.

    Args:
        overrides: The command line's, in canonical spelling, as for `fourfold -m`.
        dirs: Folders with the user's own options.
        config_name: The primary config.
        console: By default standard output.

    Raises:
        ConfigError: a value cannot run, or none of the cells can.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    with explained(overrides, dirs):
        plan = multirun.plan(overrides, dirs, config_name)
        with hydra_ready(dirs) as hydra:
            sweeper = _sweeper(hydra, plan.overrides, dirs, config_name)
            began = time.time()
            with console.status("trying the first steps of every set-up"):
                found, tried = _outlook(sweeper)
    console.print(_table(found))
    _print_totals(found, console)
    broken = sum(isinstance(each, str) for each in tried.values())
    if tried:
        _print(console, f"{told(len(tried), broken, began)}, each for {STEPS} steps.")
    if tried and broken == len(tried) and not any(row.done for row in found.rows):
        raise ConfigError(f"no run of this sweep can begin: {next(iter(tried.values()))}")


def _sweeper(hydra: Any, overrides: Sequence[str], dirs: Sequence[Path], config_name: str) -> "FourfoldSweeper":
    """Our sweeper, set up as for the sweep."""
    words = [*overrides, *searchpath(overrides, dirs), "hydra.mode=MULTIRUN"]
    cfg = hydra.compose_config(config_name, words, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
    target = cfg.hydra.sweeper.get("_target_")
    if target != multirun.OURS:
        raise ConfigError(f"hydra.sweeper._target_={target} keeps its plans to itself: leave hydra/sweeper= out")
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
    sweeper: Any = Plugins.instance().instantiate_sweeper(config=cfg, hydra_context=context, task_function=_never)
    return sweeper


def _never(cfg: Any) -> None:
    raise AssertionError("a plan runs nothing")


def _outlook(sweeper: "FourfoldSweeper") -> tuple[Outlook, Mapping[str, Estimate | str]]:
    """Reads the study and tries what is left of it; also what came of each set-up that was tried."""
    from hydra_plugins.fourfold_sweeper._engine import _cells, _ordered, asked
    from hydra_plugins.fourfold_sweeper._preflight import compose

    arguments = asked(sweeper, [*sweeper.config.hydra.overrides.task])
    cells = _cells(sweeper, arguments, measuring=False)
    order = _ordered(sweeper, cells, measuring=False)
    cells = [*order.cells] if order is not None else cells
    every = prospects(cells, compose(sweeper))
    config = next(each.config for each in every if each.cell)
    workers = sweeper.workers if sweeper.workers > 0 else os.cpu_count() or 1
    folder = Path(sweeper.config.hydra.sweep.dir)
    storage = existing(sweeper.storage, folder)
    here = beside(sweeper.storage, folder)
    done = {
        cell.name: len(finished(storage, config.study, cell, config.search.max_retries, here)) if storage else 0
        for cell in cells
    }
    repeats = _repeats_done(storage, config.study, here)

    runs = _runs(every, done, repeats, config)
    tried: dict[str, Estimate | str] = {}
    with trying(steps=STEPS, stored=True, threads=max(1, (os.cpu_count() or 1) // workers)) as attempt:
        for each in every:
            budget, ended = runs[each.row]
            if ended < budget and each.key not in tried:
                tried[each.key] = attempt(each.config)
    rows = tuple(_row(name, [each for each in every if each.row == name], runs[name], tried) for name in runs)
    alone = sum(1 for each in {each.folder: each for each in every if each.cell and not each.cell.space})
    outlook = Outlook(
        folder=folder,
        rows=rows,
        duplicates=max(0, space.written(arguments) - alone - sum(bool(cell.space) for cell in cells)),
        workers=workers,
        timeout=parsed_seconds(config.search.timeout) if config.search.timeout else None,
    )
    return outlook, tried


def _repeats_done(storage: Any, study: str, folder: Path | None) -> Mapping[str, int]:
    """How many repeats of a cell's best point have been made, by the cell's name."""
    counts: dict[str, int] = {}
    for trial in view(storage, study, folder) if storage else []:
        cell, found, _ = trial.cell.rpartition("-repeats")
        if found and trial.state == "done":
            counts[cell] = counts.get(cell, 0) + 1
    return counts


def _runs(
    every: Sequence[Prospect], done: Mapping[str, int], repeats: Mapping[str, int], config: RunConfig
) -> dict[str, tuple[int, int]]:
    """How many runs each row has, and how many of them are done. A run that stands in two cells counts in the first."""
    counts: dict[str, tuple[int, int]] = {}
    seen: set[Any] = set()
    for each in every:
        runs, ended = counts.get(each.row, (0, 0))
        counts[each.row] = runs, ended
        known = each.cell.name if each.cell and each.cell.space else each.folder
        if known in seen:
            continue
        seen.add(known)
        if each.cell is None or not each.cell.space:
            counts[each.row] = runs + 1, ended + (each.finished or bool(each.cell and done[each.cell.name]))
        else:
            cell, again = each.cell, config.search.repeats
            finished_now = min(done[cell.name], cell.budget) + min(repeats.get(cell.name, 0), again)
            counts[each.row] = runs + cell.budget + again, ended + finished_now
    return counts


def _row(name: str, every: Sequence[Prospect], runs: tuple[int, int], tried: Mapping[str, Estimate | str]) -> Row:
    outcomes = [tried[each.key] for each in every if each.key in tried]
    estimates = [outcome for outcome in outcomes if isinstance(outcome, Estimate)]
    learns = [each.trainable for each in estimates]
    seconds = max((each.seconds for each in estimates), default=None)
    shared = max((each.shared_seconds for each in estimates), default=0.0)
    if not outcomes:  # all done
        results = [found for each in every if isinstance(found := read_result(each.folder), Result)]
        learns = [result.params_trainable for result in results]
        seconds = sum(result.seconds for result in results) / len(results) if results else None
    failure = next((outcome for outcome in outcomes if isinstance(outcome, str)), None)
    return Row(name or "what is swept", *runs, max(learns, default=None), seconds, shared, failure)


def _table(outlook: Outlook) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("cell", overflow="fold")
    for heading in ("runs", "done", "learns", "one run", "minutes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in outlook.rows:
        cost = ("", "broken", "") if row.failure else (_count(row.trainable), _clock(row.seconds), _minutes(row))
        style = "red" if row.failure else "" if row.left else "dim"
        table.add_row(row.name, str(row.runs), str(row.done), *cost, style=style)
    return table


def _print_totals(outlook: Outlook, console: Console) -> None:
    runs, done = sum(row.runs for row in outlook.rows), sum(row.done for row in outlook.rows)
    console.print()
    for row in outlook.rows:
        if row.failure:
            _print(console, f"{row.name} cannot run: {row.failure}")
    twice = f"; {outlook.duplicates} written twice and left out" if outlook.duplicates else ""
    _print(console, f"{runs} runs: {done} done, {runs - done} to do{twice}. Study: {outlook.folder}")
    if outlook.seconds_left:
        workers = f"{outlook.workers} worker{'s' if outlook.workers > 1 else ''}"
        _print(console, f"At most {_clock(outlook.seconds_left)} with {workers}: patience and pruning end runs earlier.")
    if outlook.timeout is not None:
        share = min(1.0, outlook.timeout / outlook.seconds_left) if outlook.seconds_left else 1.0
        fits = "fits" if share == 1 else f"does not fit: about {math.floor(share * (runs - done))} of {runs - done} runs do"
        _print(console, f"search.timeout={_clock(outlook.timeout)}: it {fits}.")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _minutes(row: Row) -> str:
    return f"{row.seconds_left / 60:.1f}" if row.left else "-"


def _clock(seconds: float | None) -> str:
    """`2.4 s`, `8 min`, `3.5 h`."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
