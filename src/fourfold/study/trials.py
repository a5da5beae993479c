"""A search's trials as a reader sees them; who writes them is the ledger's business."""

from dataclasses import dataclass
from typing import Literal

State = Literal["done", "pruned", "failed", "running", "waiting", "interrupted"]

ENDED: tuple[State, ...] = ("done", "pruned", "failed")  # a trial in any other state still owes its result


@dataclass(frozen=True)
class TrialView:
    """One trial of one cell, at the moment of reading."""

    cell: str
    number: int  # within the cell
    state: State
    overrides: tuple[str, ...]  # those that make this run alone
    value: float | None  # of the metric that is searched by, as measured: not turned so that more is better
    reason: str | None  # why it was pruned, failed or interrupted
    seconds: float | None  # of training, so far
    epochs: int | None  # done, so far
    folder: str | None  # relative to the study's folder, or absolute; a trial that is tried again keeps its folder
    retries: int  # how often it has been started again
