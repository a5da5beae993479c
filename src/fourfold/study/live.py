"""A sweep while it runs: a small table on a terminal, one line for each finished run anywhere else."""

import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fourfold.scores import sign
from fourfold.study.trials import ENDED, State, TrialView, label
from fourfold.tracking.console import clock

REFRESH = 0.5  # seconds between two looks at the trials
BESIDE_THE_CELLS = 6  # lines of the display: head, rule, what is left out, an empty one, the bar, and one to spare
COLUMNS: tuple[State, ...] = ("done", "running", "pruned", "failed")
COLOURS: dict[State, str] = {"done": "green", "running": "bold", "pruned": "cyan", "failed": "red"}


class SweepDisplay:
    """The progress of a sweep on standard output, told from its trials.

    Args:
        total: runs of the whole sweep; 0 shows nothing at all.
        metric: by which the sweep searches, such as `val/acc`: the name of the trials' values, and which way is better.
        live: a table that is drawn over itself. Only for a process in which no run trains: a run draws a bar of its own, and
            two would overwrite each other. Without it, and where the output is no terminal: a line for each run that ends.
        shared: overrides of all runs, which tell none from another.
        console: by default standard output.
    """

    def __init__(
        self, total: int, metric: str, *, live: bool, shared: Collection[str] = (), console: Console | None = None
    ) -> None:
        self._console = console or Console()
        self._shared = frozenset(shared)
        self._total = total
        self._metric = metric
        self._live: Live | None = None
        if live and total and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._views: Sequence[TrialView] = ()
        self._told: set[tuple[str, int]] | None = None  # None: before the first look
        self._pace = Pace()
        self._next_look = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show()  # what the last updates were too quick for
        if self._live is not None:
            self._live.stop()

    @property
    def due(self) -> bool:
        """Whether `update` would look; reading all trials from a storage costs something."""
        return self._total > 0 and time.monotonic() >= self._next_look

    def update(self, views: Sequence[TrialView]) -> None:
        """Show how the trials stand now. Between two refreshes this costs one look at the clock."""
        self._views = views
        if self.due:
            self._next_look = time.monotonic() + REFRESH
            self._show()

    def _show(self) -> None:
        if not self._total:
            return
        self._pace.see(self._views)
        self._tell_ended()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _tell_ended(self) -> None:
        """A line for each run that has ended since the last look; above the table for those that failed only."""
        ended = [view for view in self._views if view.state in ENDED]
        known = self._told
        self._told = {(view.cell, view.number) for view in ended}
        if known is None:
            self._tell_kept(ended)
            return
        fresh = [view for view in ended if (view.cell, view.number) not in known]
        for count, view in enumerate(fresh, start=len(ended) - len(fresh) + 1):
            if self._live is None or view.state == "failed":
                self._console.print(self._line(count, view), highlight=False, markup=False, soft_wrap=True)

    def _tell_kept(self, ended: Sequence[TrialView]) -> None:
        if ended and self._live is None:
            line = f"[{len(ended)}/{self._total}] ended before"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _line(self, count: int, view: TrialView) -> str:
        note = (view.reason or "") if view.value is None else f"{self._metric} {view.value:.4g}"
        width = len(str(self._total))
        parts = (
            f"[{count:{width}}/{self._total}] {view.state:6} {self._named(view.overrides) or view.cell}",
            " ".join(note.split()),
        )
        return "  ".join(part for part in parts if part)

    def _table(self) -> Group:
        cells = _by_cell(self._views, self._shared)
        room = max(self._console.height - BESIDE_THE_CELLS, 1)
        shown = _most_alive(cells, room)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("cell", overflow="ellipsis", no_wrap=True)
        columns = [state for state in COLUMNS if any(view.state == state for view in self._views)]
        for state in columns:
            table.add_column(state, justify="right", style=COLOURS[state], min_width=len(state))
        table.add_column("best", justify="right", no_wrap=True)
        table.add_column("at", overflow="ellipsis", no_wrap=True, min_width=9)
        for name in shown:
            table.add_row(name, *_counts(cells[name], columns), *self._best(name, cells[name]))
        left_out = len(cells) - len(shown)
        more = [Text(f"and {left_out} more cells", style="dim")] if left_out else []
        return Group(table, *more, Text(), self._bar())

    def _best(self, name: str, views: Sequence[TrialView]) -> tuple[str, str]:
        scored = [view for view in views if view.state == "done" and view.value is not None]
        if not scored:
            return "", ""
        turned = sign(self._metric.rpartition("/")[2])
        best = max(scored, key=lambda view: turned * (view.value or 0.0))
        said = set(name.split())
        return f"{best.value:.4g}", " ".join(word for word in self._named(best.overrides).split() if word not in said)

    def _named(self, overrides: Sequence[str]) -> str:
        return label([override for override in overrides if override not in self._shared])

    def _bar(self) -> Table:
        ended = sum(view.state in ENDED for view in self._views)
        left = self._pace.left(self._views, self._total)
        line = Table.grid(padding=(0, 2, 0, 0))
        times = [f"{clock(self._pace.elapsed)} so far", *([f"left {clock(left)}"] if left is not None else [])]
        bar = ProgressBar(total=self._total, completed=ended, width=24)
        line.add_row(bar, f"{ended}/{self._total}", *times, Text(f"best by {self._metric}", style="dim"))
        return line


class Pace:
    """How long the rest of a sweep takes, by what this sitting has seen; what ended before it began cost it nothing."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before: int | None = None

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self._began

    def see(self, views: Sequence[TrialView]) -> None:
        if self._before is None:
            self._before = _ended(views)

    def left(self, views: Sequence[TrialView], total: int) -> float | None:
        """Seconds, as many runs at once as now; None while there is nothing to judge by."""
        ended = _ended(views)
        here = ended - (self._before or 0)
        if here > 0:
            return self.elapsed / here * (total - ended)
        known = [view.seconds for view in views if view.state in ENDED and view.seconds]
        at_once = sum(view.state == "running" for view in views)
        return sum(known) / len(known) * (total - ended) / max(at_once, 1) if known else None


def _ended(views: Sequence[TrialView]) -> int:
    return sum(view.state in ENDED for view in views)


def _by_cell(views: Sequence[TrialView], shared: Collection[str]) -> dict[str, list[TrialView]]:
    """Trials by their cell. In a grid each point is a cell: there by what is left without the optimizer and the seed."""
    standing = [view for view in views if view.state != "interrupted"]  # that one's place was taken by a later trial
    is_grid = len({view.cell for view in standing}) == len(standing)
    cells: dict[str, list[TrialView]] = {}
    for view in standing:
        cells.setdefault((_place(view, shared) if is_grid else "") or view.cell, []).append(view)
    return cells


def _place(view: TrialView, shared: Collection[str]) -> str:
    place = [word for word in view.overrides if not word.lstrip("+").startswith(("optimizer.", "seed="))]
    return label([word for word in place if word not in shared]) or label(place)


def _most_alive(cells: dict[str, list[TrialView]], room: int) -> list[str]:
    """As many cells as there is room for, in their order: those that run rather than those that wait or have ended."""

    def dullness(name: str) -> int:
        states = {view.state for view in cells[name]}
        return 0 if "running" in states else 2 if states <= {*ENDED} else 1

    kept = sorted(cells, key=dullness)[:room]
    return [name for name in cells if name in kept]


def _counts(views: Sequence[TrialView], columns: Sequence[State]) -> list[str]:
    numbers = [sum(view.state == state for view in views) for state in columns]
    return [str(number) if number else "" for number in numbers]
