"""A sweep: take trials from the ledger, hand them to the launcher, until every cell is done - whoever else is at it."""

import gc
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from optuna.storages import BaseStorage

from fourfold.checks import seconds
from fourfold.compose import canonical, to_run_config
from fourfold.config import RunConfig
from fourfold.files import write_text
from fourfold.interrupts import listening
from fourfold.jobs import quickly
from fourfold.study.baselines import first, older, textbook
from fourfold.study.ledger import Job, Ledger
from fourfold.study.live import SweepDisplay
from fourfold.study.objectives import directions, names
from fourfold.study.samplers import pruner, sampler
from fourfold.study.space import Cell, grid, read
from fourfold.study.storage import open_storage
from hydra_plugins.fourfold_sweeper._preflight import preflight
from hydra_plugins.fourfold_sweeper._task import TRIAL

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper

log = logging.getLogger(__name__)
WORKER = "FOURFOLD_WORKER"  # environment variable of a process that another one reports for: where it begins, 0 to 1
DEADLINE = "FOURFOLD_DEADLINE"  # environment variable of such a process: after this time it begins no run
ENDED_BY_ITSELF = (0, 2, 130)  # exit codes of a worker: done, refused, stopped
IN_VAIN = 3  # workers that die one after another before they have taken a trial: nothing would change for the next
POLL = 1.0  # seconds between two looks at trials that other processes hold
SELDOM = 20  # looking at every cell may take one part in so many of the time, however many cells there are


@quickly()
def sweep(sweeper: "FourfoldSweeper", arguments: list[str]) -> None:
    """Run what is left of the study; several processes may do so at once.

    Raises:
        ConfigError: the sweep itself cannot be.
    """
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "multirun.yaml", OmegaConf.to_yaml(sweeper.config))
    cells = _cells(sweeper, asked(sweeper, arguments))
    config = _config(sweeper, cells[0])
    if WORKER not in os.environ and config.search.preflight != "off":
        preflight(sweeper, cells, config, folder)
    storage = open_storage(sweeper.storage, folder)
    ledger = _ledger(storage, config, cells)
    deadline = _deadline(config)
    if sweeper.workers != 1:
        with SweepDisplay(sum(cell.budget for cell in cells), names(config)[0], live=True, shared=_shared(cells)) as display:
            show = lambda: display.update(ledger.view()) if display.due else None  # noqa: E731
            _work_together(sweeper.workers, _gpus(config), folder, show, Replacing(ledger, deadline))
            display.update(ledger.view())
    _settle(sweeper, ledger, cells, names(config)[0], deadline)
    searched = [cell for cell in cells if cell.space]
    if searched and config.search.repeats and ledger.is_done():
        again = [_repeats(ledger, cell, config.search.repeats) for cell in searched]
        _settle(sweeper, _ledger(storage, config, again), again, names(config)[0], deadline)


def asked(sweeper: "FourfoldSweeper", arguments: list[str]) -> list[Override]:
    """What is fixed, swept and searched, by the configuration and by the command line."""
    texts = canonical([*(f"{key!s}={value}" for key, value in sweeper.params.items()), *arguments])
    return OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(texts)


def _cells(sweeper: "FourfoldSweeper", overrides: list[Override]) -> list[Cell]:
    search = sweeper.config.search
    enqueue = OmegaConf.to_container(search.enqueue)
    assert isinstance(enqueue, list)
    cells = read(
        overrides,
        n_trials=search.n_trials,
        conditional=sweeper.conditional,
        enqueue=enqueue,
        chosen=dict(sweeper.config.hydra.runtime.choices),
    )
    return [_with_baselines(sweeper, cell) if cell.space else cell for cell in cells]


def _with_baselines(sweeper: "FourfoldSweeper", cell: Cell) -> Cell:
    """The textbook's choice before the points that were asked for, and then an older study's best."""
    config = _config(sweeper, cell)
    if config.search.sampler in ("grid", "brute_force"):  # these two try every value once, these among them
        return replace(cell, budget=min(cell.budget, math.prod(map(len, (grid(cell.space) or {}).values()))))
    warm = older(Path(config.search.warm_start), config, cell.space) if config.search.warm_start else []
    return replace(cell, points=first(textbook(config, cell.space), *cell.points, *warm)[: cell.budget])


def _config(sweeper: "FourfoldSweeper", cell: Cell) -> RunConfig:
    """The run of a cell: how a study searches is the same in all of them."""
    composed = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(cell.fixed))
    return to_run_config(composed)


def _deadline(config: RunConfig) -> float | None:
    """Seconds since the epoch; the same for a process and its workers, also those that it starts in the place of others."""
    if DEADLINE in os.environ:
        return float(os.environ[DEADLINE])
    return time.time() + seconds(config.search.timeout) if config.search.timeout else None


def _ledger(storage: BaseStorage, config: RunConfig, cells: Sequence[Cell]) -> Ledger:
    goals = directions(config)
    return Ledger(
        storage,
        config.study,
        cells,
        goals,
        lambda cell: sampler(config.search.sampler, config.search.seed, cell.space, goals),
        pruner(config.search.pruner if len(goals) == 1 else "none", epochs=config.trainer.epochs),
        config.search.max_retries,
        metrics=names(config),
        retry_failed=WORKER not in os.environ,  # once for each time that the command is typed
        begin_at=float(os.environ.get(WORKER, 0)),
    )


def _repeats(ledger: Ledger, cell: Cell, count: int) -> Cell:
    """The best point of a cell again, with `count` seeds: what a report may compare."""
    best = ledger.best(cell)
    command = tuple(best.user_attrs["command"]) if best is not None else ()
    points = tuple({"seed": f"seed={seed}"} for seed in range(count)) if best is not None else ()
    return Cell(f"{cell.name}-repeats", command, points, {}, len(points))


def _settle(sweeper: "FourfoldSweeper", ledger: Ledger, cells: Sequence[Cell], metric: str, deadline: float | None) -> None:
    """Take and launch trials until every cell is done; where only other processes' trials are left, wait for them."""
    launched = 0
    longest = 0.0
    next_look = 0.0
    size = _size(sweeper, cells)
    parent = os.getppid()
    gc.collect()
    gc.freeze()  # a run leaves its configurations in cycles: looking for them shall not go through all that was imported
    total = 0 if ledger.is_done() else sum(cell.budget for cell in cells)
    with SweepDisplay(total, metric, live=False, shared=_shared(cells)) as display:
        while not ledger.is_done():
            if time.monotonic() >= next_look:
                look = time.monotonic()
                ledger.reap()
                display.update(ledger.view())
                next_look = time.monotonic() + SELDOM * (time.monotonic() - look)
            if deadline is not None and time.time() + longest > deadline:
                log.warning("the time is up: what is left waits for the same command")
                break
            if WORKER in os.environ and os.getppid() != parent:
                log.warning("the process that started this worker is gone: what is left waits for the same command")
                break
            jobs = _batch(ledger, size)
            if not jobs:
                time.sleep(POLL)
                continue
            started = time.time()
            for together in _apart(jobs):
                _launch(sweeper, ledger, together, launched)
                launched += len(together)
            longest = max(longest, time.time() - started)
        display.update(ledger.view())


def _shared(cells: Sequence[Cell]) -> set[str]:
    """Overrides of every cell."""
    return set.intersection(*(set(cell.fixed) for cell in cells))


def _batch(ledger: Ledger, size: int | None) -> list[Job]:
    """As many jobs as the launcher gets at once, fewer after a suspect one: what others could do meanwhile is left to them."""
    jobs: list[Job] = []
    while size is None or len(jobs) < size:
        job = ledger.take()
        if job is None:
            break
        jobs.append(job)
        if job.suspect:
            break
    return jobs


def _apart(jobs: list[Job]) -> list[list[Job]]:
    """Calls of the launcher: one in which no job has ever died, and one for each suspect, whose death must harm no other."""
    trusted = [job for job in jobs if not job.suspect]
    return [each for each in (trusted, *([job] for job in jobs if job.suspect)) if each]


def _launch(sweeper: "FourfoldSweeper", ledger: Ledger, jobs: list[Job], first: int) -> None:
    """Hand jobs to the launcher; those that it has left unfinished are queued again."""
    reason: str | None = "the launcher did not begin it"
    try:
        # what it returns is not kept: the configurations of a thousand runs
        sweeper.launcher.launch([_command(job) for job in jobs], initial_job_idx=first)
    except Exception as error:  # a worker was killed, or a job's values do not go together; the runs have told their own ends
        reason = f"{type(error).__name__}: {error}"
        log.warning("the launcher gave up, what it left is queued again: %s", reason)
    except BaseException:  # Ctrl-C: nothing has died
        reason = None
        raise
    finally:
        ledger.put_back_left(jobs, reason)


def _size(sweeper: "FourfoldSweeper", cells: Sequence[Cell]) -> int | None:
    """Runs per call of the launcher: one in this process; elsewhere all there are, unless a sampler waits for results."""
    if sweeper.n_jobs is not None:
        return sweeper.n_jobs
    launcher = sweeper.config.hydra.launcher
    if "basic" in str(launcher.get("_target_", "")):
        return 1
    if not any(cell.space for cell in cells):
        return None
    n_jobs = launcher.get("n_jobs") or 1
    return int(n_jobs) if n_jobs > 0 else os.cpu_count() or 1


def _command(job: Job) -> list[str]:
    return [*job.overrides, f"+hydra.job.env_set.{TRIAL}='{json.dumps([job.study, job.trial_id])}'"]


def _gpus(config: RunConfig) -> list[str]:
    """The GPUs that workers may have, as CUDA_VISIBLE_DEVICES names them."""
    if config.trainer.device not in ("auto", "cuda"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Replacing:
    """Whether another worker begins in the place of one that has died: a crash may cost a run, not the night a worker."""

    def __init__(self, ledger: Ledger, deadline: float | None) -> None:
        self._ledger = ledger
        self.environment = {} if deadline is None else {DEADLINE: str(deadline)}
        self._in_vain: Counter[int] = Counter()  # place -> workers in a row that have died before they took a trial

    def __call__(self, place: int, pid: int, code: int) -> bool:
        if code in ENDED_BY_ITSELF or self._in_vain[place] >= IN_VAIN or self._ledger.is_done():
            return False
        self._in_vain[place] = 0 if self._ledger.has_taken(pid) else self._in_vain[place] + 1
        again = self._in_vain[place] < IN_VAIN
        fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        log.warning("worker %d %s: %s", place, fate, "another begins in its place" if again else "it is not started again")
        return again


def _work_together(workers: int, gpus: Sequence[str], folder: Path, show: Callable[[], None], again: Replacing) -> None:
    """Run the same command in `workers` processes, each with its share of the cores or its own GPU, until they have ended."""
    count = workers if workers > 0 else len(gpus) or os.cpu_count() or 1
    threads = max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", "fourfold", *sys.argv[1:], "hydra.sweeper.workers=1"]
    logs = folder / "workers"
    logs.mkdir(exist_ok=True)

    def start(i: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), WORKER: str(i / count)}
        environment |= again.environment
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        with (logs / f"{i}.log").open("a") as out:
            # a session of its own, so that Ctrl-C reaches it once, from here, and it has the time to save
            return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)

    children = [start(i) for i in range(count)]
    working = True
    try:
        with listening() as asked_to_stop:
            while working and not asked_to_stop():
                show()
                time.sleep(POLL / 4)
                working = False
                for i, child in enumerate(children):
                    code = child.poll()
                    if code is not None and again(i, child.pid, code):
                        children[i] = start(i)
                        code = None
                    working = working or code is None
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    if asked_to_stop():
        raise KeyboardInterrupt("stopped and saved: the same command goes on from there")
