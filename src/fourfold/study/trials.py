"""A search's trials as a reader sees them; who writes them is the ledger's business."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["done", "pruned", "failed", "running", "waiting", "interrupted"]

ENDED: tuple[State, ...] = ("done", "pruned", "failed")  # a trial in any other state still owes its result

SPEAKS_FOR_ITSELF = frozenset({"quadrant", "dataset", "model", "freeze", "freeze_strategy"})  # keys whose value says it all
NOT_SAID = frozenset({"study", "hydra", "paths", "logger", "experiment", "search"})


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


def label(overrides: Sequence[str]) -> str:
    """`similar_small full lr=0.01 s0`: a run's overrides as people speak of them, without those that say where and for whom."""
    return " ".join(word for override in overrides if (word := _word(override)))


def spoken(override: str) -> str:
    """An override without the escapes that Hydra's grammar needs: `model.weights=experiment:mine`."""
    return re.sub(r"\\(.)", r"\1", override)


def _word(override: str) -> str:
    key, _, value = spoken(override).lstrip("+").partition("=")
    if key.startswith("~") or key.replace("/", ".").split(".")[0] in NOT_SAID:
        return ""
    if key in SPEAKS_FOR_ITSELF:
        return value
    return f"s{value}" if key == "seed" else f"{key.rpartition('.')[2]}={_short(value)}"


def _short(value: str) -> str:
    """Three digits of a number that a search has drawn."""
    try:
        return value if value.isdigit() else f"{float(value):.3g}"
    except ValueError:
        return value
