"""Learning curves of one setting: a value of `metrics.jsonl` by epoch, over the runs that differ in their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.files import read_jsonl
from fourfold.study.results import UNREADABLE, Result
from fourfold.study.statistics import Estimate, estimate


@dataclass(frozen=True)
class Curve:
    """Epochs, from 1, and at each the mean and spread of the value."""

    epochs: tuple[int, ...]
    values: tuple[Estimate, ...]


def curve(runs: Sequence[Result], key: str) -> Curve | None:
    """The curve of `key`, such as `train/loss`.

    Where patience ended runs at different epochs, it goes on as long as at least half of them do.

    Returns:
        None where no run recorded it.
    """
    found: dict[int, list[float]] = {}
    for run in runs:
        for row in _rows(run):
            if isinstance(row.get(key), int | float):
                found.setdefault(int(row["epoch"]) + 1, []).append(float(row[key]))
    kept = {epoch: values for epoch, values in sorted(found.items()) if 2 * len(values) >= len(runs)}
    return Curve(tuple(kept), tuple(estimate(values) for values in kept.values())) if kept else None


def _rows(run: Result) -> list[dict[str, float]]:
    try:
        return [row for row in read_jsonl(run.folder / "metrics.jsonl") if "epoch" in row]
    except (OSError, *UNREADABLE):
        return []
