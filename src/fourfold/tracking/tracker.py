"""Who is told about a run, and the one who tells nobody."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import nn


class Tracker:
    """One listener to one run, open for the length of a `with` block. This one is the null object: it forgets everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; an exception that leaves the block marks the run as failed."""

    def watch(self, model: "nn.Module") -> None:
        """Follow the model's gradients, if the configuration asks for it. Call it before the first backward pass."""

    def log(self, row: dict[str, float]) -> None:
        """Tell of one epoch.

        Args:
            row: metrics by name, with "epoch" counted from 0. After a resume an epoch may come again.
        """

    def summary(self, values: dict[str, Any]) -> None:
        """Tell the numbers that stand for the whole run, such as "best/val_acc" and "test/acc"."""

    def log_model(self, path: Path) -> None:
        """Keep a checkpoint, if the configuration asks for it."""

    @property
    def stop_requested(self) -> bool:
        """Whether somebody who watches has asked this run to end."""
        return False

    @property
    def hint(self) -> str | None:
        """One line for the user on how to get the record to its page later, or None. Complete once the block has ended."""
        return None


class Trackers(Tracker):
    """Several listeners as one; with none of them, the null object."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for tracker in self._trackers:
                opening.enter_context(tracker)
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def watch(self, model: "nn.Module") -> None:
        for tracker in self._trackers:
            tracker.watch(model)

    def log(self, row: dict[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(row)

    def summary(self, values: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.summary(values)

    def log_model(self, path: Path) -> None:
        for tracker in self._trackers:
            tracker.log_model(path)

    @property
    def stop_requested(self) -> bool:
        return any(tracker.stop_requested for tracker in self._trackers)

    @property
    def hint(self) -> str | None:
        return next((tracker.hint for tracker in self._trackers if tracker.hint), None)
