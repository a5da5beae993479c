"""Who does which trial: every cell of a study is an Optuna study, and any number of processes take trials from them.

There is no leader. A process asks a cell for a trial, says that it holds it, and tells how it ended; whoever finds a trial
whose holder has died puts it back in the queue. Every step may be cut short by a kill: the next process makes it whole.

* A trial has a *key*: an enqueued point is known by `p` and a hash of its values, the sampled trial 7 as `n7`. A trial put
  back keeps its key, so a key is done when one trial with it has ended.
* A trial is *void* if another process was quicker: a key that stands already, or more keys than the cell's budget. Both are
  decided by trial numbers, which the storage hands out once, so that all processes decide alike.
"""

import hashlib
import json
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from fourfold.identity import changes_the_result
from fourfold.study import lease
from fourfold.study.space import Cell, params, to_overrides
from fourfold.study.storage import JOURNAL, SQLITE, existing, persevere
from fourfold.study.trials import State, TrialView

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Job:
    """One trial to run."""

    study: str  # Optuna's name of the cell's study
    trial_id: int
    number: int
    cell: str
    overrides: tuple[str, ...]
    suspect: bool = False  # a process in which it ran has died


class Ledger:
    """The trials of one study, shared through a storage with whoever opens the same.

    Args:
        storage: See `study.storage`.
        study: Name of the whole; each cell's Optuna study is called `<study>/<cell>#<hash>`, with a hash of all that is
            fixed and searched in it: another command in the same study has cells of its own.
        cells: What is to be done.
        directions: `maximize` or `minimize` of each objective.
        sampler: Makes the sampler of a cell.
        pruner: Of all cells.
        max_retries: How often a trial whose process died is put back before it is quarantined; a death after another epoch was
            done counts as the first, since such a run gets to its end.
        retry_failed: Whether a grid point that has failed is tried again. A failed trial of a search counts as tried, and a
            quarantined one would kill again.
        metrics: Names of the objectives, for programs that show the study, such as optuna-dashboard.
        folder: Of the study, where its trials lie there as well: one whose run has left no result in it any more is run again
            when the command is typed. None: they are in a database, and their runs may lie where this machine does not see.
        begin_at: From 0 to 1, where in the list of cells this process looks first. Processes that begin apart seldom want the
            same thing at once, such as a backbone that has to be pretrained.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study: str,
        cells: Sequence[Cell],
        directions: Sequence[str],
        sampler: Callable[[Cell], BaseSampler],
        pruner: BasePruner,
        max_retries: int,
        *,
        retry_failed: bool = False,
        metrics: Sequence[str] = (),
        folder: Path | None = None,
        begin_at: float = 0.0,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        self._max_retries = max_retries
        self._folder = folder
        first = int(begin_at * len(cells))
        self._cells = {_study_name(study, cell): cell for cell in (*cells[first:], *cells[:first])}
        self._studies = {
            name: persevere(
                partial(
                    optuna.create_study,
                    storage=storage,
                    study_name=name,
                    load_if_exists=True,
                    directions=[StudyDirection[goal.upper()] for goal in directions],
                    sampler=sampler(cell),
                    pruner=pruner,
                )
            )
            for name, cell in self._cells.items()
        }
        # With a thousand cells no step may look at them all, so each remembers what can only become true, or only grow:
        self._done: dict[str, list[FrozenTrial]] = {}  # the trials of cells that are done
        self._begun = dict.fromkeys(self._cells, 0)  # keys that had begun when a cell was last looked at
        for name, cell in self._cells.items():
            _name_objectives(self._studies[name], list(metrics))
            self._enqueue(self._studies[name], cell, retry_failed)

    def _enqueue(self, study: Study, cell: Cell, retry_failed: bool) -> None:
        """Put the cell's fixed points in its queue, each once; a race of two processes makes void trials, no second runs."""
        trials = self._trials(study.study_name)
        known = _keys(trials)
        there = {_key(trial) for trial in (self._standing(trials, cell) if retry_failed else trials)}
        for trial in trials:
            if _key(trial) not in there and _is_gone(trial, self._folder):
                there.add(_key(trial))
                again = {"key": _key(trial), "overrides": trial.user_attrs.get("overrides", [])}
                self._queue(study, trial, again, trial.params)
        for point in cell.points:
            key = f"p{_digest(sorted(point.items()))}"
            if key not in there and len(known | {key}) <= cell.budget:  # a point thought of too late is not tried
                known.add(key)
                told = [] if cell.space else list(point.values())
                fixed = params(cell.space, point) if cell.space else {}
                trial = create_trial(
                    state=TrialState.WAITING,
                    user_attrs={"key": key, "overrides": told},
                    system_attrs={"fixed_params": fixed},
                )
                persevere(partial(study.add_trial, trial))

    def take(self) -> Job | None:
        """The next trial to run, held by this process; None where nothing is left to begin.

        Cells take turns, so that a night that ends early has given each the same number of trials.
        """
        left = [name for name in self._cells if name not in self._done]
        while left:
            name = min(left, key=self._begun.__getitem__)
            begun = self._begun[name]
            wanted = self._wants(name)
            if self._begun[name] > begun:
                continue  # others have been there: another cell may be the next now
            job = self._ask(name) if wanted else None
            if job is not None:
                return job
            if not wanted:
                left.remove(name)
        return None

    def _wants(self, name: str) -> bool:
        """Whether the cell has a trial in its queue, or budget for a new one; takes note of what has begun."""
        trials = self._trials(name)
        begun = {_key(trial) for trial in trials if trial.state != TrialState.WAITING and not _is_void(trial)}
        self._begun[name] = max(self._begun[name], len(begun))
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        return bool(self._cells[name].space) and len(_keys(trials)) < self._cells[name].budget

    def _ask(self, name: str) -> Job | None:
        """Ask the cell for a trial; None if another process turns out to have been quicker."""
        study, cell = self._studies[name], self._cells[name]
        trial = persevere(lambda: study.ask(cell.space or None))
        frozen = persevere(lambda: self._storage.get_trial(trial._trial_id))
        overrides = (*cell.fixed, *frozen.user_attrs.get("overrides", ()), *to_overrides(frozen.params))
        try:
            self.set(trial._trial_id, "holder", lease.holder())
            self.set(trial._trial_id, "key", frozen.user_attrs.get("key", f"n{trial.number}"))
            self.set(trial._trial_id, "command", list(overrides))
        except optuna.exceptions.UpdateFinishedTrialError:  # this process slept so long that it was given up for dead
            return None
        if self._is_late(study, cell, trial.number):
            self.set(trial._trial_id, "void", True)
            self.end(trial._trial_id, TrialState.FAIL)
            return None
        return Job(name, trial._trial_id, trial.number, cell.name, overrides, frozen.user_attrs.get("deaths", 0) > 0)

    def _is_late(self, study: Study, cell: Cell, number: int) -> bool:
        """Whether this trial's key stands already, or the budget was used up before it."""
        trials = self._trials(study.study_name)
        mine = _key(next(trial for trial in trials if trial.number == number))
        if self._standing([trial for trial in trials if _key(trial) == mine and trial.number < number], cell):
            return True
        first: dict[str, int] = {}
        for trial in trials:
            if not _is_void(trial):
                first.setdefault(_key(trial), trial.number)
        return sum(at < first.get(mine, number) for key, at in first.items() if key != mine) >= cell.budget

    def reap(self) -> int:
        """Put back every trial whose holder has died, or give up on it after `max_retries`; returns how many were found."""
        found = 0
        for name in [name for name in self._cells if not self._is_done(name)]:
            for trial in self._trials(name):
                started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
                if trial.state == TrialState.RUNNING and not lease.is_alive(trial.user_attrs.get("holder"), started):
                    self.put_back(name, trial.number)
                    found += 1
        return found

    def put_back_left(self, jobs: Sequence[Job], reason: str | None) -> None:
        """Put back what a launcher has left unfinished; a run that goes on in a process of its own keeps its trial.

        Args:
            jobs: What the launcher was given.
            reason: Why it ended, in case that it has begun none; None where it was asked to stop.
        """
        trials = [persevere(partial(self._storage.get_trial, job.trial_id)) for job in jobs]
        none_begun = reason is not None and not any(_has_begun(trial) for trial in trials)
        if none_begun and len(jobs) == 1:
            self.fail(jobs[0], reason or "")
        for job, trial in zip(jobs, trials, strict=True):
            holder = trial.user_attrs.get("holder")
            if lease.is_mine(holder) or not lease.is_alive(holder, 0.0):
                # does nothing to a trial that has ended; where none has begun, any may be the cause, so each is tried alone
                self.put_back(job.study, job.number, blame=reason is not None and (none_begun or None))

    def put_back(self, name: str, number: int, *, blame: bool | None = None) -> None:
        """End a trial that was cut short, and queue it again in its place, unless it has ended or died too often.

        The new trial comes before the end of the old one: a kill between them leaves one to be found again, never none.

        Args:
            name: Of the cell's Optuna study.
            number: Of the trial.
            blame: Whether this counts as a death of the trial. None: if its run had begun, and was not asked to stop. One that
                only waited for its turn in a launcher whose worker was killed has done nothing.
        """
        study = self._studies[name]
        trials = self._trials(name)
        old = next(trial for trial in trials if trial.number == number)
        if old.state != TrialState.RUNNING:
            return
        told = old.user_attrs
        deaths = told.get("deaths", 0)
        if (_has_begun(old) and not told.get("stopped")) if blame is None else blame:
            deaths = 1 if len(old.intermediate_values) > told.get("resumed_at", 0) else deaths + 1
        if deaths > self._max_retries:
            command = f"fourfold {shlex.join(told.get('command', ()))}"
            self.set(old._trial_id, "quarantined", deaths)
            self.set(
                old._trial_id,
                "reason",
                f"its process died {deaths} times before it had done another epoch, so no sweep runs it again (unless "
                f"search.max_retries is raised): run it alone to see why, `{command}`",
            )
            self.end(old._trial_id, TrialState.FAIL)
            return
        self.set(old._trial_id, "interrupted", True)
        if not any(trial.user_attrs.get("continues") == number for trial in trials):
            attributes = {
                "key": _key(old),
                "overrides": told.get("overrides", []),
                "continues": number,
                "retries": told.get("retries", 0) + _has_begun(old),
                "deaths": deaths,
                "resumed_at": len(old.intermediate_values),
            }
            # one that died while it was being proposed is proposed anew, or a part of its values would be drawn otherwise
            whole = old.params.keys() >= self._cells[name].space.keys()
            self._queue(study, old, attributes, old.params if whole else {}, old.intermediate_values)
        self.end(old._trial_id, TrialState.FAIL)

    def _queue(
        self,
        study: Study,
        old: FrozenTrial,
        told: dict[str, Any],
        values: dict[str, Any],
        reported: dict[int, float] | None = None,
    ) -> None:
        """Queue a trial again.

        Args:
            told: Its attributes.
            values: What had been proposed; nothing where it shall be proposed anew.
            reported: By epoch.
        """
        fixed = {**old.system_attrs.get("fixed_params", {}), **values}
        again = create_trial(
            state=TrialState.WAITING,
            params=values,
            distributions=old.distributions if values else {},
            user_attrs=told,
            system_attrs={**old.system_attrs, **({"fixed_params": fixed} if fixed else {})},
            intermediate_values=reported or {},
        )
        persevere(lambda: study.add_trial(again))

    def is_done(self) -> bool:
        """Whether every key of every cell has ended."""
        return all(map(self._is_done, self._cells))

    def _is_done(self, name: str) -> bool:
        if name not in self._done:
            trials = self._trials(name)
            real = [trial for trial in trials if not _is_void(trial)]
            if any(trial.state in UNFINISHED for trial in real):
                return False
            if len({_key(trial) for trial in real if not _is_interrupted(trial)}) < self._cells[name].budget:
                return False
            self._done[name] = trials
        return True

    def best(self, cell: Cell) -> FrozenTrial | None:
        """The best completed trial of a cell (of several objectives: the first of the Pareto set), or None."""
        name = next(name for name, each in self._cells.items() if each == cell)
        if not any(trial.state == TrialState.COMPLETE for trial in self._trials(name)):
            return None
        return persevere(lambda: self._studies[name].best_trials)[0]

    def view(self) -> list[TrialView]:
        """The trials of these cells as a reader sees them who is in a hurry, and looks for no results."""
        return [each for name in self._cells for each in _views(name, self._trials(name), None)]

    def fail(self, job: Job, reason: str) -> None:
        """End a job's trial, unless it has ended."""
        if persevere(lambda: self._storage.get_trial(job.trial_id)).state == TrialState.RUNNING:
            self.set(job.trial_id, "reason", reason)
            self.end(job.trial_id, TrialState.FAIL)

    def has_taken(self, pid: int) -> bool:
        """Whether the process of this host with that pid has ever taken one of these trials."""
        host = lease.holder()["host"]
        holders = [trial.user_attrs.get("holder", {}) for name in self._cells for trial in self._trials(name)]
        return any(holder.get("pid") == pid and holder.get("host") == host for holder in holders)

    def set(self, trial_id: int, key: str, value: Any) -> None:
        persevere(lambda: self._storage.set_trial_user_attr(trial_id, key, value))

    def end(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Give a trial its last state; False if it had one."""
        return end(self._storage, trial_id, state, values)

    def _standing(self, trials: Sequence[FrozenTrial], cell: Cell) -> list[FrozenTrial]:
        return _standing(trials, cell, self._max_retries, self._folder)

    def _trials(self, name: str) -> list[FrozenTrial]:
        """The trials of a cell. A trial that has ended changes no more; a cell that is done gets new ones only from a process
        that tries failed points again, which does them itself."""
        return self._done.get(name) or persevere(lambda: self._studies[name].get_trials(deepcopy=False))


def _name_objectives(study: Study, names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if names and persevere(lambda: study.metric_names) != names:
            persevere(lambda: study.set_metric_names(names))


def end(storage: BaseStorage, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
    """Give a trial its last state; False if it had one."""

    def tell() -> bool:
        try:
            return storage.set_trial_state_values(trial_id, state, values)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    return persevere(tell)


def _study_name(study: str, cell: Cell) -> str:
    space = {key: distribution_to_json(distribution) for key, distribution in sorted(cell.space.items())}
    fixed = sorted(override for override in cell.fixed if changes_the_result(override))
    return f"{study}/{cell.name}#{_digest([fixed, space])}"


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def cell_of(name: str) -> str:
    """The cell whose trials are in the Optuna study called so."""
    return name.rpartition("/")[2].rpartition("#")[0]  # the name of a study may hold a slash, that of a cell does not


STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def _standing(trials: Sequence[FrozenTrial], cell: Cell, max_retries: int, folder: Path | None) -> list[FrozenTrial]:
    """Trials that leave no room for another of their key: not those cut short, nor grid points that have failed, unless they
    were quarantined, nor those whose result somebody has removed."""

    def stands(trial: FrozenTrial) -> bool:
        quarantined = trial.user_attrs.get("quarantined", 0) > max_retries
        return trial.state != TrialState.FAIL or bool(cell.space) or quarantined

    real = [trial for trial in trials if stands(trial) and not _is_void(trial) and not _is_interrupted(trial)]
    return [trial for trial in real if not _is_gone(trial, folder)]


def view(storage: BaseStorage, study: str | None = None, folder: Path | None = None) -> list[TrialView]:
    """The trials in a storage as a reader sees them, the latest of each key; void ones are left out. Changes nothing.

    Args:
        storage: See `study.storage`.
        study: Name of the whole, whose cells are wanted: a database may hold many. None: all that there are.
        folder: As `Ledger` has it.
    """
    return [
        each
        for cell in persevere(storage.get_all_studies)
        if study is None or cell.study_name.rpartition("/")[0] == study
        for each in _views(cell.study_name, persevere(partial(storage.get_all_trials, cell._study_id, deepcopy=False)), folder)
    ]


def _views(study: str, trials: Sequence[FrozenTrial], folder: Path | None) -> list[TrialView]:
    latest = {_key(trial): trial for trial in trials if not _is_void(trial)}
    return [_view(cell_of(study), trial, folder) for trial in latest.values()]


def finished(storage: BaseStorage, study: str, cell: Cell, max_retries: int, folder: Path | None) -> list[TrialView]:
    """The trials of a cell that no process would run again, one of each key. Changes nothing."""
    name = _study_name(study, cell)
    try:
        study_id = persevere(lambda: storage.get_study_id_from_name(name))
    except KeyError:
        return []
    trials = _standing(persevere(lambda: storage.get_all_trials(study_id, deepcopy=False)), cell, max_retries, folder)
    return _views(name, [trial for trial in trials if trial.state not in UNFINISHED], folder)


def kept(folder: Path) -> list[TrialView]:
    """The trials that a study keeps in its own folder; none where it has no storage there. Creates nothing."""
    storage = existing(JOURNAL, folder) or existing(SQLITE, folder)
    return [] if storage is None else view(storage, folder=folder)


def _view(cell: str, trial: FrozenTrial, folder: Path | None) -> TrialView:
    told, gone = trial.user_attrs, _is_gone(trial, folder)
    return TrialView(
        cell=cell,
        number=trial.number,
        state="interrupted" if gone or _is_interrupted(trial) else STATES[trial.state],
        overrides=tuple(told.get("command", ())),
        value=trial.values[0] if trial.values else None,
        reason="its result.json is gone: the same command runs it again" if gone else told.get("reason"),
        seconds=told.get("seconds"),
        epochs=len(trial.intermediate_values) or None,
        folder=told.get("folder"),
        retries=told.get("retries", 0),
    )


def _key(trial: FrozenTrial) -> str:
    return trial.user_attrs.get("key", f"n{trial.number}")


def _keys(trials: Sequence[FrozenTrial]) -> set[str]:
    return {_key(trial) for trial in trials if not _is_void(trial)}


def _is_gone(trial: FrozenTrial, folder: Path | None) -> bool:
    """Whether a run was completed, but has left no result in the study's folder any more: somebody wants it anew."""
    place = trial.user_attrs.get("folder") if trial.state == TrialState.COMPLETE else None
    return folder is not None and place is not None and not (folder / place / "result.json").exists()


def _is_void(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("void"))


def _has_begun(trial: FrozenTrial) -> bool:
    return "folder" in trial.user_attrs


def _is_interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("interrupted"))
