"""What a person sees while a run trains: a bar on a terminal, one line per epoch anywhere else."""

import multiprocessing
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REFRESH = 0.25  # seconds between two looks at the loss, each of which waits for the device

Loss = SupportsFloat | Callable[[], SupportsFloat] | None


class Display:
    """The progress of one run on standard output.

    A bar on a terminal; plain lines when the output is piped, and in the worker processes of a sweep, whose bars would
    overwrite each other. Between two refreshes a step costs one look at the clock.

    Args:
        enabled: false shows nothing at all.
        epochs: of the whole run; the time left is told for all of them.
        title: names the run: once above a bar, in every plain line.
    """

    def __init__(self, enabled: bool, epochs: int, title: str) -> None:
        self._epochs = epochs
        self._title = title
        self._enabled = enabled
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._epoch = 0
        self._steps = 1
        self._step = 0
        self._first = 0
        self._began: float | None = None
        self._next_look = 0.0

    def __enter__(self) -> Self:
        console = Console()
        if self._enabled and console.is_terminal and multiprocessing.current_process().name == "MainProcess":
            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("", total=self._epochs, note="")
            self._bar.start()
            self._above_the_bar(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, epoch: int, steps: int) -> None:
        """An epoch begins.

        Args:
            epoch: counted from 0.
            steps: optimizer steps in it.
        """
        if self._began is None:
            self._began, self._first = time.monotonic(), epoch
        self._epoch, self._steps, self._step = epoch, max(steps, 1), 0

    def step(self, loss: Loss, lr: float) -> None:
        """An optimizer step is done.

        Args:
            loss: a number, a tensor of one element, or a function that gives one. It is read, which waits for a GPU, four
                times a second at most and only for the bar.
            lr: the learning rate of the head.
        """
        self._step += 1
        if self._bar is None or (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + REFRESH
        value = loss() if callable(loss) else loss
        told = "" if value is None else f"loss {_number(float(value))}  "
        self._show(f"step {self._step}/{self._steps}  {told}lr {_number(lr)}  {self._left(self._done())}")

    def row(self, row: dict[str, Any]) -> None:
        """An epoch has ended, and this is what came of it.

        Args:
            row: as in metrics.jsonl; the losses, the learning rate and the first other metric of the validation are shown.
        """
        self._epoch, self._step = int(row["epoch"]), self._steps
        line = "  ".join((f"epoch {self._epoch + 1}/{self._epochs}", *told(row), self._left(self._done()))).rstrip()
        if self._bar is not None:
            self._above_the_bar(line)
            self._show("")
        elif self._enabled:
            print(f"{self._title}  {line}", flush=True)

    def _above_the_bar(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, note: str) -> None:
        if self._bar is not None:
            description = f"epoch {self._epoch + 1}/{self._epochs}"
            self._bar.update(self._task, completed=self._done(), description=description, note=note)
            self._bar.refresh()

    def _done(self) -> float:
        """Epochs, with the fraction of the present one."""
        return self._epoch + min(self._step / self._steps, 1.0)

    def _left(self, done: float) -> str:
        """Judged by the epochs of this start alone: those before a resume cost it nothing."""
        if self._began is None or done <= self._first:
            return ""
        seconds = (time.monotonic() - self._began) / (done - self._first) * (self._epochs - done)
        return f"left {clock(seconds)}"


def told(row: dict[str, Any]) -> list[str]:
    """The few numbers of an epoch that fit on a line."""
    losses = [name for name in ("train/loss", "val/loss") if row.get(name) is not None]
    others = [name for name in row if name.startswith("val/") and name != "val/loss" and row[name] is not None]
    names = ["lr", *losses, *others[:1]]
    return [f"{name} {_number(float(row[name]))}" for name in names if row.get(name) is not None]


def clock(seconds: float) -> str:
    """As 1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _number(value: float) -> str:
    return f"{value:.4g}"
