"""A run that belongs to a study: it says that it has begun, reports each epoch, and tells its own end.

The sweeper may be dead by then, or on another machine: what a run has found out must not depend on it.
"""

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from fourfold import imports
from fourfold.config import ConfigError, RunConfig
from fourfold.files import read_json
from fourfold.interrupts import deferring
from fourfold.study import lease, ledger
from fourfold.study.objectives import directions, values_of
from fourfold.study.samplers import pruner
from fourfold.study.storage import open_storage, persevere

if TYPE_CHECKING:
    from fourfold.chorus import Chorus
    from fourfold.stock import Stock

TRIAL = "FOURFOLD_TRIAL"  # environment variable of a job: [study, trial id]

log = logging.getLogger(__name__)


class TrialTask:
    """The task function, wrapped; it travels to whatever process the launcher chooses."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._open: tuple[tuple[int, str, str], BaseStorage] | None = None
        self.chorus: Chorus | None = None  # in which the runs are told that begin now
        self._stock: Stock | None = None

    def __reduce__(self) -> tuple[type["TrialTask"], tuple[Any]]:
        return TrialTask, (self._task,)

    def share(self, storage: BaseStorage, kind: str, folder: Path) -> None:
        """Use the storage that this process has open: a second reader of the journal would read every line again."""
        self._open = (os.getpid(), kind, str(folder)), storage

    def _storage(self, kind: str, folder: Path) -> BaseStorage:
        """The study's storage, opened once for all runs of a process: a journal of a thousand trials takes a second to read."""
        key = (os.getpid(), kind, str(folder))
        if self._open is None or self._open[0] != key:
            self._open = key, open_storage(kind, folder)
        return self._open[1]

    def stock(self, heads: int) -> "Stock | None":
        """What runs of this process have in common; None where each is to be by itself."""
        if self._stock is None and heads != 1:
            with imports.loading("torch"):
                from fourfold.stock import Stock

            self._stock = Stock()
        return self._stock

    def _company(self, config: RunConfig, heads: int) -> dict[str, Any]:
        """What a run is given of the others beside its configuration; one that trains nothing but a head joins theirs."""
        stock = self.stock(heads)
        if stock is None:
            return {}
        joins = self.chorus is not None and stock.serves(config)
        return {"shared": stock, **({"drive": self.chorus} if joins else {})}

    def __call__(self, cfg: DictConfig) -> Any:
        if TRIAL not in os.environ:
            return self._task(cfg)
        study_name, trial_id = json.loads(os.environ[TRIAL])
        job = HydraConfig.get()
        storage = self._storage(job.sweeper.storage, Path(job.sweep.dir))
        trial = persevere(lambda: storage.get_trial(trial_id))
        if trial.state != TrialState.RUNNING:
            log.info("trial %d of %s has been run by another process", trial_id, study_name)
            return None
        config: Any = cfg  # read in few places; the run itself makes a RunConfig of it
        with deferring(), _held(storage, trial_id), _stop_noted(storage, trial_id):
            folder = Path(job.runtime.output_dir)
            persevere(lambda: storage.set_trial_user_attr(trial_id, "folder", folder.name))
            if trial.user_attrs.get("stopped"):  # Slurm has begun the same job once more
                persevere(lambda: storage.set_trial_user_attr(trial_id, "stopped", False))
            handle = Handle(storage, study_name, trial_id, config)
            failure = self._task(cfg, trial=handle, **self._company(config, job.sweeper.heads))
            return _tell(storage, trial_id, failure, handle, config, folder)


@contextmanager
def _stop_noted(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """A run that was asked to stop has saved; it must not count as one that died."""
    try:
        yield
    except KeyboardInterrupt:
        if persevere(lambda: storage.get_trial(trial_id)).state == TrialState.RUNNING:
            persevere(lambda: storage.set_trial_user_attr(trial_id, "stopped", True))
        raise


def _tell(
    storage: BaseStorage, trial_id: int, failure: Exception | None, handle: "Handle", config: RunConfig, folder: Path
) -> Exception | float | list[float] | None:
    """Write how the run ended into the study; returns what the job returns."""

    def note(key: str, value: Any) -> None:
        persevere(lambda: storage.set_trial_user_attr(trial_id, key, value))

    values: list[float] = []
    if failure is None and not handle.pruned:
        result = read_json(folder / "result.json")
        note("seconds", result["seconds"])
        try:
            values = values_of(result, config)
        except ConfigError as error:  # an objective that nobody measures
            failure = error
    if failure is not None:
        note("reason", str(failure))
        ledger.end(storage, trial_id, TrialState.FAIL)
        return failure
    if handle.pruned:
        ledger.end(storage, trial_id, TrialState.PRUNED)
        return None
    ledger.end(storage, trial_id, TrialState.COMPLETE, values)
    return values[0] if len(values) == 1 else values


class Handle:
    """The trial as `fourfold.run` sees it: scores come in with more being better, and go out as the objective has them."""

    def __init__(self, storage: BaseStorage, study: str, trial_id: int, config: RunConfig) -> None:
        goals = directions(config)
        judge = pruner(config.search.pruner if len(goals) == 1 else "none", epochs=config.trainer.epochs)
        # a sampler that draws nothing: the real one would, when a Trial is made
        quiet = optuna.samplers.RandomSampler()
        loaded = persevere(lambda: optuna.load_study(study_name=study, storage=storage, sampler=quiet, pruner=judge))
        self._storage, self._trial_id = storage, trial_id
        self._trial = optuna.trial.Trial(loaded, trial_id)
        self._told = set(persevere(lambda: storage.get_trial(trial_id)).intermediate_values)
        self._single = len(goals) == 1
        self._judged = self._single and bool(self._trial.distributions)  # a point of a grid is not searched
        self._sign = 1 if goals[0] == "maximize" else -1
        self.cell = ledger.cell_of(study)
        self.number = self._trial.number
        self.pruned = False

    def report(self, value: float, step: int) -> None:
        """Also of what is not judged: the ledger wants to know that a run gets on."""
        if step not in self._told:  # a resumed run may report an epoch again
            persevere(lambda: self._tell(self._sign * value, step))
            self._told.add(step)

    def _tell(self, value: float, step: int) -> None:
        if self._single:
            self._trial.report(value, step)
        else:  # Optuna refuses, since none of its pruners could use it
            self._storage.set_trial_intermediate_value(self._trial_id, step, value)

    def should_prune(self) -> bool:
        self.pruned = self._judged and persevere(self._trial.should_prune)
        return self.pruned


@contextmanager
def _held(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """This process holds the trial, and says so again and again for those who cannot see its pid."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease.BEAT):
            try:
                storage.set_trial_user_attr(trial_id, "holder", lease.holder())
            except Exception as error:  # the next beat may come through
                log.debug("no beat: %s", error)

    persevere(lambda: storage.set_trial_user_attr(trial_id, "holder", lease.holder()))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
