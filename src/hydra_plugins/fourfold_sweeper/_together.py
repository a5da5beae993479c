"""Which trials a process takes at once, to train their heads together: those that differ in nothing but numbers."""

import gc
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fourfold.compose import to_run_config
from fourfold.identity import in_the_parts
from fourfold.study.ledger import Job, Ledger
from fourfold.study.space import Cell

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper

LIMIT = 64  # runs begin inside each other, some ten of Python's frames each
SELDOM = 20_000  # objects made between two looks for garbage, which go through all that so many runs hold, and find little


class Together:
    """Takes trials from the ledger: as many of a kind as may be run together, one of any other.

    A trial that turns out to be of another kind is held until the next call.
    """

    def __init__(self, sweeper: "FourfoldSweeper", cells: Sequence[Cell], command: Callable[[Job], list[str]]) -> None:
        self._sweeper, self._command = sweeper, command
        self._limit = min(sweeper.heads, LIMIT)
        self._searched = {cell.name for cell in cells if cell.space}  # whose sampler waits for results
        self._joins: dict[tuple[str, ...], bool] = {}
        self._held: Job | None = None

    def take(self, ledger: Ledger, several: Callable[[], list[Job]]) -> tuple[list[Job], bool]:
        """Trials to launch now, and whether as one; none where nothing is left to begin.

        Args:
            several: Takes the trials that are handed to a launcher at once, if they are not run together.
        """
        if self._limit == 1 or "basic" not in str(self._sweeper.config.hydra.launcher.get("_target_", "")):
            return several(), False
        first, self._held = self._held or ledger.take(), None
        if first is None or not self._may_join(first):
            return [first] if first is not None else [], False
        jobs = [first]
        while len(jobs) < self._limit:
            job = ledger.take()
            if job is None:
                break
            if self._kind(job) != self._kind(first) or not self._may_join(job):
                self._held = job
                break
            jobs.append(job)
        return jobs, True

    def put_back(self, ledger: Ledger) -> None:
        """Give back the trial that is held, when no more are to begin."""
        if self._held is not None:
            ledger.put_back_left([self._held], None)

    def launch(self, jobs: Sequence[Job], launch: Callable[[list[Job], int], Any], first: int) -> None:
        """Run trials in step; each is launched by itself, inside the one before."""
        from fourfold.chorus import Chorus

        task = self._sweeper.task
        task.chorus = Chorus(deque(partial(launch, [job], first + i) for i, job in enumerate(jobs)))
        usual = gc.get_threshold()
        gc.set_threshold(SELDOM, *usual[1:])
        try:
            task.chorus.begin()
        finally:
            task.chorus = None
            gc.set_threshold(*usual)

    def _kind(self, job: Job) -> tuple[str, ...]:
        return tuple(each for each in job.overrides if in_the_parts(each.partition("=")[0].lstrip("+~")))

    def _may_join(self, job: Job) -> bool:
        if job.suspect or job.cell in self._searched:
            return False
        kind = self._kind(job)
        if kind not in self._joins:
            from fourfold.stock import Stock

            composed = self._sweeper.jobs.load_sweep_config(self._sweeper.config, self._command(job))
            self._joins[kind] = Stock.serves(to_run_config(composed))
        return self._joins[kind]
