"""A sweep: take trials from the ledger, hand them to the launcher, until every cell is done - whoever else is at it."""

import gc
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from optuna.storages import BaseStorage

from fourfold import imports
from fourfold.checks import seconds
from fourfold.compose import canonical, to_run_config
from fourfold.config import RunConfig
from fourfold.files import write_text
from fourfold.jobs import quickly
from fourfold.study.baselines import first, older, textbook
from fourfold.study.ledger import Job, Ledger
from fourfold.study.live import SweepDisplay
from fourfold.study.objectives import directions, names
from fourfold.study.samplers import pruner, sampler
from fourfold.study.space import Cell, grid, read
from fourfold.study.storage import beside, open_storage
from hydra_plugins.fourfold_sweeper._placing import BY_TRANSFERABILITY, Order, chosen, ordered, placing, saving
from hydra_plugins.fourfold_sweeper._preflight import preflight
from hydra_plugins.fourfold_sweeper._task import TRIAL
from hydra_plugins.fourfold_sweeper._together import Together
from hydra_plugins.fourfold_sweeper._workers import DEADLINE, WORKER, Replacing, gpus, work_together

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at trials that other processes hold
SELDOM = 20  # looking at every cell may take one part in so many of the time, however many cells there are


@quickly()
def sweep(sweeper: "FourfoldSweeper", arguments: list[str]) -> None:
    """Run what is left of the study; several processes may do so at once.

    Raises:
        ConfigError: the sweep itself cannot be.
    """
    imports.end()
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "multirun.yaml", OmegaConf.to_yaml(sweeper.config))
    cells = _cells(sweeper, asked(sweeper, arguments))
    order = _ordered(sweeper, cells)
    cells = [*order.cells] if order is not None else cells
    config = _config(sweeper, cells[0])
    deadline = _deadline(config)
    if WORKER not in os.environ and config.search.preflight != "off":
        preflight(sweeper, cells, config, folder)
    storage = open_storage(sweeper.storage, folder)
    sweeper.task.share(storage, sweeper.storage, folder)
    ledger = _ledger(sweeper, storage, config, cells)
    if sweeper.workers != 1:
        with SweepDisplay(sum(cell.budget for cell in cells), names(config)[0], live=True, shared=_shared(cells)) as display:
            show = lambda: display.update(ledger.view()) if display.due else None  # noqa: E731
            work_together(sweeper.workers, gpus(config), folder, show, Replacing(ledger, deadline))
            display.update(ledger.view())
    _settle(sweeper, ledger, cells, names(config)[0], deadline)
    searched = [cell for cell in cells if cell.space]
    if searched and config.search.repeats and ledger.is_done():
        again = [_repeats(ledger, cell, config.search.repeats) for cell in searched]
        _settle(sweeper, _ledger(sweeper, storage, config, again), again, names(config)[0], deadline)
    if order is not None and WORKER not in os.environ:
        text = saving(order, ledger.view(), 1 if directions(config)[0] == "maximize" else -1)
        log.info(text or "search.warm_start=transferability: no run has ended with a value")


def asked(sweeper: "FourfoldSweeper", arguments: list[str]) -> list[Override]:
    """What is fixed, swept and searched, by the configuration and by the command line."""
    texts = canonical([*(f"{key!s}={value}" for key, value in sweeper.params.items()), *arguments])
    return OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(texts)


def _ordered(sweeper: "FourfoldSweeper", cells: list[Cell], *, measuring: bool = True) -> Order | None:
    """The cells as `search.warm_start=transferability` puts them; None where they stay as they are."""
    search = sweeper.config.search
    if search.warm_start != BY_TRANSFERABILITY:
        return None
    return ordered(cells, placing(sweeper, Path(sweeper.config.hydra.sweep.dir), measuring=measuring), search.keep)


def _cells(sweeper: "FourfoldSweeper", overrides: list[Override], *, measuring: bool = True) -> list[Cell]:
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
    cells = chosen(cells, placing(sweeper, Path(sweeper.config.hydra.sweep.dir), measuring=measuring))
    return [_with_baselines(sweeper, cell) if cell.space else cell for cell in cells]


def _with_baselines(sweeper: "FourfoldSweeper", cell: Cell) -> Cell:
    """The textbook's choice before the points that were asked for, and then an older study's best."""
    config = _config(sweeper, cell)
    if config.search.sampler in ("grid", "brute_force"):  # these two try every value once, these among them
        return replace(cell, budget=min(cell.budget, math.prod(map(len, (grid(cell.space) or {}).values()))))
    study = config.search.warm_start
    warm = older(Path(study), config, cell.space) if study and study != BY_TRANSFERABILITY else []
    return replace(cell, points=first(textbook(config, cell.space), *cell.points, *warm)[: cell.budget])


def _config(sweeper: "FourfoldSweeper", cell: Cell) -> RunConfig:
    """The run of a cell: how a study searches is the same in all of them."""
    composed = sweeper.jobs.load_sweep_config(sweeper.config, list(cell.fixed))
    return to_run_config(composed)


def _deadline(config: RunConfig) -> float | None:
    """Seconds since the epoch; the same for a process and its workers, also those that it starts in the place of others."""
    if DEADLINE in os.environ:
        return float(os.environ[DEADLINE])
    return time.time() + seconds(config.search.timeout) if config.search.timeout else None


def _ledger(sweeper: "FourfoldSweeper", storage: BaseStorage, config: RunConfig, cells: Sequence[Cell]) -> Ledger:
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
        folder=beside(sweeper.storage, Path(sweeper.config.hydra.sweep.dir)),
        retry_failed=WORKER not in os.environ,  # once for each time that the command is typed
        # in an order that was measured, all begin with the best
        begin_at=0.0 if config.search.warm_start == BY_TRANSFERABILITY else float(os.environ.get(WORKER, 0)),
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
    together = Together(sweeper, cells, _command)
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
            jobs, in_step = together.take(ledger, lambda: _batch(ledger, size))
            if not jobs:
                time.sleep(POLL)
                continue
            started = time.time()
            if in_step:
                together.launch(jobs, partial(_launch, sweeper, ledger), launched)
                launched += len(jobs)
            for some in _apart(jobs) if not in_step else ():
                _launch(sweeper, ledger, some, launched)
                launched += len(some)
            longest = max(longest, time.time() - started)
        together.put_back(ledger)
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
