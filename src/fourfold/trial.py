"""What a run may tell a search, and what the search may answer. A run outside a search talks to `NoTrial`."""

from typing import Protocol


class Pruned(Exception):
    """The search has ended this run early. What was trained is saved."""


class Stopped(Exception):
    """Somebody who watches has ended this run, and only this one. What was trained is saved; the same command goes on."""


class Trial(Protocol):
    """The part of an Optuna trial that a run uses."""

    def report(self, value: float, step: int) -> None: ...

    def should_prune(self) -> bool: ...


class NoTrial:
    """Nobody is searching."""

    def report(self, value: float, step: int) -> None:
        """Forget it."""

    def should_prune(self) -> bool:
        return False
