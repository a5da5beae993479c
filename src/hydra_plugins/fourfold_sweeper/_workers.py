"""The worker processes of a sweep on this machine: as many as asked for, each with its GPU or its share of the cores."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fourfold.config import RunConfig
from fourfold.interrupts import listening
from fourfold.study.ledger import Ledger

log = logging.getLogger(__name__)
WORKER = "FOURFOLD_WORKER"  # environment variable of a process that another one reports for: where it begins, 0 to 1
DEADLINE = "FOURFOLD_DEADLINE"  # environment variable of such a process: after this time it begins no run
ENDED_BY_ITSELF = (0, 2, 130)  # exit codes of a worker: done, refused, stopped
IN_VAIN = 3  # workers that die one after another before they have taken a trial: nothing would change for the next
LOOK = 0.25  # seconds between two looks at the workers


def gpus(config: RunConfig) -> list[str]:
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


def work_together(workers: int, gpus: Sequence[str], folder: Path, show: Callable[[], None], again: Replacing) -> None:
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
                time.sleep(LOOK)
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
