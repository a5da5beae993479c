"""What a run may tell a search, and what the search may answer. A run outside a search talks to `NoTrial`.

Which trial a run is enters records for people only: it changes neither the run nor its identity.
"""

from typing import Protocol


class Pruned(Exception):
    """The search has ended this run early. What was trained is saved."""


class Stopped(Exception):
    """Somebody who watches has ended this run, and only this one. What was trained is saved; the same command goes on."""


class Trial(Protocol):
    """The part of an Optuna trial that a run uses."""

    @property
    def cell(self) -> str | None:
        """The cell of the study that the trial belongs to, by its name; None outside a search."""

    @property
    def number(self) -> int | None:
        """Of the trial, within its cell from 0; None outside a search."""

    def report(self, value: float, step: int) -> None: ...

    def should_prune(self) -> bool: ...


class NoTrial:
    """Nobody is searching."""

    cell: str | None = None
    number: int | None = None

    def report(self, value: float, step: int) -> None:
        """Forget it."""

    def should_prune(self) -> bool:
        return False
