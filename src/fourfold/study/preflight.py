"""Before the night starts: every set-up of a study is tried out, so that what is broken is told in the evening.

A set-up is what a run is built of; runs that differ in seed or learning rate share one. What was found stays in the study's
`preflight.json`, so that the same command tries only what is new, and what has failed before.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from rich.console import Console

from fourfold import imports
from fourfold.config import ConfigError, RunConfig
from fourfold.estimate import Estimate
from fourfold.files import lock, read_json, write_json
from fourfold.records import asdict

FILE = "preflight.json"
LONGEST = 300  # characters of a failure


@dataclass(frozen=True)
class Candidate:
    """A set-up that waits to be tried."""

    key: str  # identity.parts_id of all runs that share it
    label: str  # as people speak of it
    config: RunConfig  # of one of these runs; its weights are there


@dataclass(frozen=True)
class Outcome:
    """What came of trying a set-up: an estimate of its runs, or one sentence on why they cannot run."""

    label: str
    estimate: Estimate | None
    failure: str | None


Try = Callable[[RunConfig], Estimate | str]


def preflight(
    candidates: Sequence[Candidate],
    folder: Path,
    policy: str,
    *,
    others_run: bool,
    apart: bool,
    console: Console | None = None,
    **options: Any,
) -> None:
    """Try every candidate that is not known to run, and tell what cannot.

    One process at a time: a second one that begins the same study waits, and takes over what the first has found.

    Args:
        candidates: One of each set-up that has something left to run.
        folder: The study's. Created.
        policy: `tell`, or `stop` where one broken set-up is too many.
        others_run: Whether the study has runs beside these, so that it is worth its while though all of these are broken.
        apart: Try in another process: for a process that trains nothing itself and should stay small.
        console: By default standard output.
        options: For `dry_run`.

    Raises:
        ConfigError: nothing can run, or something cannot and `policy` is `stop`.
    """
    console = console or Console()
    began = time.time()
    with lock(folder / ".preflight.lock"):
        known = {
            key: outcome
            for key, (outcome, found_at) in _read(folder).items()
            if outcome.failure is None or found_at >= began  # which another process found while this one waited
        }
        missing = [candidate for candidate in candidates if candidate.key not in known]
        with trying(apart, **options) as attempt:
            for candidate in missing:
                known[candidate.key] = _outcome(candidate, attempt)
                _write(folder, candidate.key, known[candidate.key])
    broken = [known[candidate.key] for candidate in candidates if known[candidate.key].failure is not None]
    for outcome in broken:
        _say(console, f"preflight: {_named(outcome)} cannot run: {outcome.failure}")
    if missing:
        _say(console, f"preflight: {told(len(missing), sum(known[c.key].failure is not None for c in missing), began)}")
    _judge(broken, len(candidates), policy, others_run)


def told(tried: int, broken: int, began: float) -> str:
    """`24 set-ups tried in 9 s: all of them run`."""
    verdict = "all of them run" if not broken else f"{broken} cannot run" if broken < tried else "none of them can run"
    return f"{tried} set-up{'s' if tried > 1 else ''} tried in {time.time() - began:.0f} s: {verdict}"


@contextmanager
def trying(apart: bool = False, **options: Any) -> Iterator[Try]:
    """A function that tries a run out, and gives an estimate or one sentence.

    Args:
        apart: In a process of its own, which lives as long as this context, and whose death is one more sentence.
        options: For `dry_run`.
    """
    if not apart:
        yield lambda config: attempted(config, options)
        return
    pools: list[ProcessPoolExecutor] = []

    def attempt(config: RunConfig) -> Estimate | str:
        if not pools:
            pools.append(ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_ends_with_its_parent))
        try:
            return pools[0].submit(attempted, config, options).result()
        except BrokenProcessPool:
            pools.pop().shutdown()
            return "the process that tried it was killed, most likely for want of memory"

    try:
        yield attempt
    finally:
        for pool in pools:
            pool.shutdown()


def _ends_with_its_parent() -> None:
    """When the sweep is killed. A pool's process holds both ends of the queue that it waits at, so it would wait for ever, with
    torch in memory and a GPU in use."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def attempted(config: RunConfig, options: dict[str, Any]) -> Estimate | str:
    """`dry_run`, with one sentence in place of whatever it raises."""
    with imports.loading("torch"):
        from fourfold.dry_run import dry_run

    try:
        return dry_run(config, **options)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        sentence = text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
        return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 3]}..."


def _outcome(candidate: Candidate, attempt: Try) -> Outcome:
    found = attempt(candidate.config)
    if isinstance(found, str):
        return Outcome(candidate.label, None, found)
    return Outcome(candidate.label, found, None)


def _read(folder: Path) -> dict[str, tuple[Outcome, float]]:
    """Set-ups that were tried, and when; nothing where the file is missing or of another version."""
    try:
        return {
            key: (Outcome(each["label"], each["estimate"] and Estimate(**each["estimate"]), each["failure"]), each["at"])
            for key, each in read_json(folder / FILE).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(folder: Path, key: str, outcome: Outcome) -> None:
    every = {each: {**asdict(found), "at": at} for each, (found, at) in _read(folder).items()}
    write_json(folder / FILE, {**every, key: {**asdict(outcome), "at": time.time()}})


def _judge(broken: Sequence[Outcome], tried: int, policy: str, others_run: bool) -> None:
    if broken and len(broken) == tried and not others_run:
        first = broken[0]
        raise ConfigError(f"no run of this sweep can begin{f'; {first.label}' if first.label else ''}: {first.failure}")
    if broken and policy == "stop":
        raise ConfigError(
            f"search.preflight=stop, and {len(broken)} of the {tried} set-ups that are left cannot run: correct them, leave "
            "them out, or begin the others with search.preflight=tell"
        )


def _named(outcome: Outcome) -> str:
    return outcome.label or "what is swept"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
