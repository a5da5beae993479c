"""What became of every run of a study: done, pruned, failed, unfinished; how to repeat each; and the best of each cell.

It reads the runs' folders, and where a search keeps trials also those, since only they know what runs or waits right now.
Nothing that a kill, a torn file or a foreign folder has left behind makes it raise.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fourfold.files import read_json, read_jsonl, write_json, write_text
from fourfold.records import asdict
from fourfold.scores import HEADLINE
from fourfold.study.cells import Cell
from fourfold.study.quadrants import Place, arrange
from fourfold.study.results import UNREADABLE, Result, Unfinished, read_runs
from fourfold.study.trials import TrialView, label

# As a night is told in the morning. A folder alone cannot say whether its run is `unfinished` or still going on; trials can.
STATES = ("done", "pruned", "failed", "interrupted", "unfinished", "running", "waiting")
LOOKED_AT = ("failed", "interrupted", "unfinished", "running", "waiting", "pruned", "done")  # what needs a look first
HEADINGS = {
    "done": "Done",
    "pruned": "Pruned",
    "failed": "Failed",
    "interrupted": "Interrupted",
    "unfinished": "Unfinished: interrupted, or still running",
    "running": "Running",
    "waiting": "Waiting",
}


@dataclass(frozen=True)
class Run:
    """One run, or a trial that has no folder yet."""

    name: str  # what sets it apart within its study
    state: str  # one of STATES
    note: str  # one line: its score, or why it has none
    command: str  # that repeats or finishes this run alone; empty where nobody wrote down what was typed
    folder: str | None  # relative to the study's
    seconds: float  # of training
    epochs: int  # done
    epochs_planned: int  # of a run that nothing had ended early; 0: unknown
    retries: int = 0

    @property
    def seconds_saved(self) -> float:
        """By pruning: the epochs that were left, each as long as those that were trained."""
        if self.state != "pruned" or not self.epochs:
            return 0.0
        return max(self.epochs_planned - self.epochs, 0) * self.seconds / self.epochs

    @property
    def line(self) -> str:
        again = f" (started {self.retries + 1} times)" if self.retries else ""
        return f"{self.name}: {self.note}{again}" if self.note else f"{self.name}{again}"


@dataclass(frozen=True)
class Best:
    """A cell's best setting on validation; the mean over its seeds."""

    cell: str
    metric: str
    value: float
    seeds: int
    lr: float
    setting: str  # all that was swept of the optimizer
    folder: str  # of its first run


@dataclass(frozen=True)
class Digest:
    """A study, as it stands."""

    name: str
    folder: Path
    runs: tuple[Run, ...]  # in the order of STATES
    best: tuple[Best, ...]

    def of(self, state: str) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == state)

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state, in the order of STATES, without those that did not occur."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def seconds(self) -> float:
        """Of training, over all runs whatever became of them; a resumed run's parts together."""
        return math.fsum(run.seconds for run in self.runs)

    @property
    def seconds_saved(self) -> float:
        """An estimate: patience might have ended a pruned run early too."""
        return math.fsum(run.seconds_saved for run in self.runs)

    @property
    def failed_rate(self) -> float:
        """Failed runs among those that have ended; 0 where none has."""
        ended = sum(len(self.of(state)) for state in ("done", "pruned", "failed"))
        return len(self.of("failed")) / ended if ended else 0.0


def digest(
    folder: Path, trials: Sequence[TrialView] = (), read: tuple[Sequence[Result], Sequence[Unfinished]] | None = None
) -> Digest:
    """Read what became of every run at or below `folder`.

    Where a folder and its trial disagree, a whole `result.json` wins: a run may die between writing and telling.

    Args:
        folder: a study's folder, or a folder of studies.
        trials: of the study's search, if it has one.
        read: its runs, as `read_runs` gives them; by default they are read now.
    """
    results, unfinished = read or read_runs(folder)
    found = {each.folder.resolve(): _unfinished(each, folder) for each in unfinished}
    found |= {result.folder.resolve(): _done(result, folder) for result in results}
    unplaced = []
    for view in _latest(trials, folder):
        path = _path(view, folder)
        if path in found:
            found[path] = _told(found[path], view)
        else:
            unplaced.append(_unplaced(view))
    names = sorted({result.study for result in results})
    return Digest(
        name=names[0] if len(names) == 1 else folder.resolve().name,
        folder=folder,
        runs=tuple(sorted(_named([*found.values(), *unplaced]), key=lambda run: STATES.index(run.state))),
        best=_best(arrange([result for result in results if _is_comparable(result)]), folder),
    )


def verdict(digest: Digest, max_failure_rate: float) -> int:
    """The exit code that a study deserves.

    Args:
        digest: of the study.
        max_failure_rate: of the runs that have ended, 0 to 1.

    Returns:
        0 where at least one run is done and no larger share than that has failed, else 1.
    """
    return int(not digest.of("done") or digest.failed_rate > max_failure_rate)


def write(digest: Digest) -> Path:
    """Write `summary.json` and `summary.md` into the study's folder, each whole or not at all; returns the latter's path."""
    path = digest.folder / "summary.md"
    write_json(digest.folder / "summary.json", _plain(digest))
    write_text(path, "\n".join(_markdown(digest)) + "\n")
    return path


def score(value: float) -> str:
    """Four digits: as many behind the point for a fraction, so that a column of them is even."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.4g}"


def span(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `7 h 05 min`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute:02} min"
    return f"{minutes} min {second:02} s" if minutes else f"{second} s"


def _done(result: Result, study: Path) -> Run:
    metric = str(result.config.get("trainer", {}).get("monitor", "auto")).removeprefix("val/")
    shown = metric if metric in result.val else next((name for name in result.val if name != "loss"), "loss")
    scored = f"val/{shown} {score(result.val[shown])}, " if shown in result.val else ""
    seconds = _finite(result.seconds)
    return Run(
        name="",
        state="done",
        note=f"{scored}{span(seconds)}",
        command=_command(result.folder, result.overrides),
        folder=_relative(result.folder, study),
        seconds=seconds,
        epochs=result.epochs,
        epochs_planned=result.epochs,
    )


def _unfinished(run: Unfinished, study: Path) -> Run:
    rows = _rows(run.folder)
    state, note = _state(run, len(rows))
    return Run(
        name="",
        state=state,
        note=_first_line(note),
        command=_command(run.folder, _overrides(run.folder)),
        folder=_relative(run.folder, study),
        seconds=_finite(rows[-1].get("seconds") if rows else None),  # a row has those of all epochs so far
        epochs=len(rows),
        epochs_planned=_planned(run.folder),
    )


def _state(run: Unfinished, epochs: int) -> tuple[str, str]:
    pruned = _mapping(run.folder / "pruned.json")
    if pruned and run.status != "failed":
        return "pruned", str(pruned.get("reason") or f"after {epochs} epochs")
    if run.status == "interrupted":
        return "unfinished", run.reason
    return "failed", run.reason  # an unreadable result.json stands in the way of the next start, too


def _told(run: Run, view: TrialView) -> Run:
    """What is on disk, with what only the trial knows."""
    if run.state == "done":
        return replace(run, retries=view.retries)
    reason = _first_line(view.reason) if view.reason else ""
    kept = run.note if run.state in (view.state, "unfinished") else ""  # not the failure of an earlier attempt
    return replace(
        run, state=view.state, note=reason or kept, retries=view.retries, command=run.command or _line(view.overrides)
    )


def _unplaced(view: TrialView) -> Run:
    scored = score(view.value) if view.value is not None else ""
    return Run(
        name="",
        state=view.state,
        note=_first_line(view.reason) if view.reason else scored,
        command=_line(view.overrides),
        folder=None,
        seconds=view.seconds or 0.0,
        epochs=view.epochs or 0,
        epochs_planned=0,
        retries=view.retries,
    )


def _latest(trials: Sequence[TrialView], study: Path) -> list[TrialView]:
    """Without the trials that were cut short and queued again: the later one, which has the same run, speaks for both."""
    latest: dict[Any, TrialView] = {}
    for view in sorted(trials, key=lambda view: view.number):
        latest[_path(view, study) or (view.cell, view.number)] = view
    later = {(view.cell, view.overrides) for view in latest.values() if view.state != "interrupted"}
    return [view for view in latest.values() if view.state != "interrupted" or (view.cell, view.overrides) not in later]


def _path(view: TrialView, study: Path) -> Path | None:
    return (study / view.folder).resolve() if view.folder else None


def _named(runs: Sequence[Run]) -> list[Run]:
    """Runs called by those of their overrides that not all of them share; by their folder where there is none."""
    typed = [shlex.split(run.command)[1:] for run in runs]
    counts = Counter(word for words in typed for word in set(words))
    shared = {word for word, count in counts.items() if count == len(runs) > 1}
    names = [label([word for word in words if word not in shared]) for words in typed]
    return [replace(run, name=name or (run.folder or "a trial")) for run, name in zip(runs, names, strict=True)]


def _is_comparable(result: Result) -> bool:
    metric = HEADLINE.get(result.task)
    return metric in result.val and metric in result.test


def _best(places: Sequence[Place], study: Path) -> tuple[Best, ...]:
    several = len({place.model for place in places}) > 1
    return tuple(_best_of(cell, place, study, several) for place in places for cell in place.cells)


def _best_of(cell: Cell, place: Place, study: Path, several_models: bool) -> Best:
    chosen = cell.chosen
    parts = [place.title, *([place.model] if several_models else []), *place.variant, cell.strategy]
    folder = _relative(chosen.runs[0].folder, study)
    return Best(" · ".join(parts), f"val/{place.metric.name}", chosen.val.mean, chosen.val.n, chosen.lr, chosen.label, folder)


def _command(folder: Path, overrides: Sequence[str]) -> str:
    return _line([*overrides, *_searched(folder)]) if overrides else ""


def _line(words: Iterable[str]) -> str:
    return f"fourfold {shlex.join(words)}".rstrip()


def _overrides(folder: Path) -> list[str]:
    """What was typed for a run that did not live to write it into its result, as Hydra keeps it."""
    typed = _yaml(folder / ".hydra" / "overrides.yaml")
    return [str(word) for word in typed] if isinstance(typed, list) else []


def _searched(folder: Path) -> list[str]:
    """The override that names the folders with the user's own options, where a run was given some."""
    path = folder / ".hydra" / "hydra.yaml"
    try:
        if "hydra.searchpath=" not in path.read_text(encoding="utf-8"):  # parsing takes longer than all else together
            return []
        overrides = _yaml(path)["hydra"]["overrides"]["hydra"]
        return [word for word in overrides if word.startswith("hydra.searchpath=")]
    except UNREADABLE:
        return []


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _rows(folder: Path) -> list[Mapping[str, Any]]:
    try:
        return [row for row in read_jsonl(folder / "metrics.jsonl") if isinstance(row, dict)]
    except (OSError, ValueError):
        return []


def _finite(seconds: object) -> float:
    return float(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else 0.0


def _planned(folder: Path) -> int:
    try:
        return int(_mapping(folder / "config.json")["trainer"]["epochs"])
    except UNREADABLE:
        return 0


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _relative(folder: Path, study: Path) -> str:
    return folder.relative_to(study).as_posix()


def _plain(digest: Digest) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null stands for them."""
    return {
        "name": digest.name,
        "counts": digest.counts,
        "failed_rate": digest.failed_rate,
        "seconds": digest.seconds,
        "seconds_saved_by_pruning": digest.seconds_saved,
        "best": [asdict(each) | {"value": each.value if math.isfinite(each.value) else None} for each in digest.best],
        "runs": [asdict(run) for run in digest.runs],
    }


def _markdown(digest: Digest) -> list[str]:
    counted = ", ".join(f"{number} {state}" for state, number in digest.counts.items()) or "no run has begun"
    lines = [f"# {digest.name}", "", f"{counted}. {told_time(digest)}"]
    if digest.best:
        lines += [
            "",
            "## Best of each cell, on validation",
            "",
            "| cell | metric | mean | seeds | at |",
            "|---|---|--:|--:|---|",
        ]
        lines += [
            f"| {_cell(each.cell)} | {each.metric} | {score(each.value)} | {each.seeds} | {each.setting} |"
            for each in digest.best
        ]
    for state in sorted(digest.counts, key=LOOKED_AT.index):
        lines += ["", f"## {HEADINGS[state]} ({digest.counts[state]})", ""]
        for run in digest.of(state):
            lines += [f"- {run.line}", *([f"  `{run.command}`"] if run.command else [])]
    return lines


def told_time(digest: Digest) -> str:
    """What the study cost, and what pruning spared it, in one sentence."""
    saved = f"; pruning saved about {span(digest.seconds_saved)}" if digest.seconds_saved else ""
    return f"Trained for {span(digest.seconds)}{saved}."


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
