"""What a sweep costs beside its runs: CPU and wall milliseconds per trial of `fourfold -m`, with a task that does nothing.

Everything else is real: the check of the command, cells, ledger, journal, Hydra composing each job and writing its `.hydra`
folder, the trial telling its end. Printed for all trials, for the first and the last hundred (a cost that grows with the trials
that there are already shows as a difference), and for Hydra's basic sweeper on the same jobs in the same process.
The last column is the part of `all` in which the sampler of a search chooses values.

    python scripts/bench/sweep_overhead.py [--trials 1000] [--profile FILE]
"""

import argparse
import contextlib
import cProfile
import io
import logging
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from optuna.samplers import BaseSampler

from fourfold import multirun, run
from fourfold.compose import hydra_ready
from fourfold.files import write_json
from hydra_plugins.fourfold_sweeper import _engine

EDGE = 100  # trials at the beginning and at the end that are told apart
RUN = ("trainer.device=cpu", "trainer.progress=false", "logger=none", "freeze=from_scratch")
SEARCH = ("hydra/sweeper=fourfold", "optimizer=adamw,sgd", "dataset.shots=2,5", "optimizer.lr=tag(log,interval(1e-4,1e-1))")


class Nothing:
    """A task in place of `fourfold.task.task`: it leaves a result, and notes when it was called."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = [clocks()]  # CPU and wall seconds: the start, each call, the end

    def __call__(self, cfg: Any, trial: Any = None, **company: Any) -> None:
        self.marks.append(clocks())
        metrics = {"train": {"loss": 1.0}, "val": {"loss": 1.0, "acc": (len(self.marks) * 0.618) % 1}}
        result = {"metrics": metrics, "seconds": 1.0, "params": {}}
        write_json(Path(HydraConfig.get().runtime.output_dir) / "result.json", result)


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


class Timed:
    """Makes samplers as the engine does, and adds up the CPU seconds in which they choose values."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._make = _engine.sampler

    def __call__(self, *args: Any) -> BaseSampler:
        made = self._make(*args)
        for name in ("infer_relative_search_space", "sample_relative", "sample_independent"):
            setattr(made, name, self._timed(getattr(made, name)))
        return made

    def _timed(self, choose: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return choose(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed


def measured(*overrides: str) -> tuple[list[tuple[float, float]], float]:
    """The marks of a whole sweep with `overrides`, as `fourfold -m` begins it, and the CPU seconds of its samplers."""
    samplers = Timed()
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet, patch.object(_engine, "sampler", samplers):
        task = Nothing()
        plan = multirun.plan(
            [*RUN, *overrides, f"paths.outputs={folder}", "study=bench", "hydra.job_logging.root.handlers=[file]"]
        )
        with hydra_ready() as hydra, multirun.checked_already():
            hydra.multirun("config", task, [*plan.overrides, "hydra.mode=MULTIRUN"])
    return [*task.marks, clocks()], samplers.seconds


def show(name: str, marks: list[tuple[float, float]], sampler: float) -> None:
    def per_trial(first: int, last: int) -> str:
        cpu, wall = (1000 * (marks[last][i] - marks[first][i]) / (last - first) for i in (0, 1))
        return f"{cpu:7.1f} {wall:7.1f}"

    trials = len(marks) - 2
    edge = min(EDGE, trials // 2)
    whole = [1000 * (marks[-1][i] - marks[0][i]) / trials for i in (0, 1)]
    columns = (f"{whole[0]:7.1f} {whole[1]:7.1f}", per_trial(1, 1 + edge), per_trial(trials - edge, trials))
    print(f"{name:24} {trials:6}   " + "   ".join(columns) + f"   {1000 * sampler / trials:7.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="of each sweep; a multiple of 20")
    parser.add_argument("--profile", help="write the profile of our sweeps into this file")
    parser.add_argument("--only", help="one of basic, grid, random, tpe")
    asked = parser.parse_args()
    seeds = f"seed=range({asked.trials // 20})"
    rates = "optimizer.lr=" + ",".join(f"{k}e-4" for k in range(1, 21))
    budget = f"search.n_trials={asked.trials // 4}"
    sweeps = {
        "basic": ("hydra/sweeper=basic", rates, seeds),
        "grid": ("hydra/sweeper=fourfold", rates, seeds),
        **{name: (*SEARCH, f"search.sampler={name}", budget) for name in ("random", "tpe")},
    }
    titles = {"basic": "Hydra's basic sweeper", "grid": "grid", "random": "search, random", "tpe": "search, tpe"}
    logging.disable(logging.INFO)
    assert run  # imported already: torch and what else the first run would import is the run's
    print("milliseconds per trial             all             first hundred     last hundred     sampler")
    print(f"{'':24} trials   {'    cpu    wall   ' * 3}    cpu")
    profile = cProfile.Profile(time.process_time) if asked.profile else contextlib.nullcontext()
    for name, overrides in sweeps.items():
        if asked.only in (None, name):
            with profile if name != "basic" else contextlib.nullcontext():
                marks, sampler = measured(*overrides)
            show(titles[name], marks, sampler)
    if isinstance(profile, cProfile.Profile):
        profile.dump_stats(asked.profile)


if __name__ == "__main__":
    main()
