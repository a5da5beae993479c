"""Whatever is killed whenever: a sweep ends as if nothing had happened, no run is done twice, and nothing is left hanging."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from fourfold.study import lease
from fourfold.study.storage import open_storage
from test_run import timeless
from test_sweeper import PATIENCE, TINY

# The random sampler: its proposals depend on the seed and the place alone, not on what has ended when two workers ask. Some
# points are given, some are drawn. Nobody is to blame for a death here, so no run is quarantined.
SEARCH = [
    *TINY, "optimizer=adamw,sgd", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "search.n_trials=6", "search.sampler=random",
    "search.pruner=none", "search.enqueue=[{optimizer.lr: 1e-3}]", "search.max_retries=1000",
]  # fmt: skip
EPOCHS = 30
RUNS = 12
SCRIPT = Path(__file__).parents[1] / "scripts" / "postgres.sh"


def start(folder: Path, *overrides: str, storage: str = "journal") -> subprocess.Popen[bytes]:
    words = ["hydra/sweeper=fourfold", "hydra.sweeper.storage=${oc.env:FOURFOLD_STORAGE}", f"paths.outputs={folder}", "study=s"]
    environment = {**os.environ, "FOURFOLD_STORAGE": storage}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    folder.mkdir(exist_ok=True)
    with (folder / "out.log").open("a") as out:
        command = [sys.executable, "-m", "fourfold", "-m", *words, *overrides]
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)


def opened(storage: str, folder: Path) -> BaseStorage:
    return open_storage(storage, folder / "s")


def trials(storage: BaseStorage) -> list[tuple[str, FrozenTrial]]:
    """With the name of the cell."""
    return [
        (study.study_name.rpartition("#")[0], trial)
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id)
    ]


def at_work(storage: BaseStorage) -> list[int]:
    """Processes that train at this moment."""
    holders = [
        trial.user_attrs["holder"]
        for _, trial in trials(storage)
        if trial.state == TrialState.RUNNING and "folder" in trial.user_attrs
    ]
    return [holder["pid"] for holder in holders if lease.is_alive(holder, 0.0)]


def finished(storage: BaseStorage) -> Counter[tuple[str, tuple[str, ...]]]:
    """Cell and overrides of every trial that is complete, without the path; asserts that the others are of no account."""
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for name, trial in trials(storage):
        told = trial.user_attrs
        assert trial.state in (TrialState.COMPLETE, TrialState.FAIL), f"{name} {trial.number} is left {trial.state.name}"
        assert trial.state == TrialState.COMPLETE or told.get("interrupted") or told.get("void"), told
        if trial.state == TrialState.COMPLETE:
            found[name, tuple(word for word in told["command"] if not word.startswith("paths."))] += 1
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """What would change if a result were written again."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("s/*/result.json")}


def results(folder: Path) -> dict[str, object]:
    read = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("s/*/result.json")}
    return {name: timeless([result["metrics"], result["epochs"], result["proof"]]) for name, result in read.items()}


def assert_same(folder: Path, storage: BaseStorage, calm: Path) -> None:
    """Everything that a study may be asked for equals that of an undisturbed one."""
    ours = finished(storage)
    assert set(ours.values()) == {1}
    assert ours.keys() == finished(opened("journal", calm)).keys()
    assert results(folder) == results(calm)
    for name in results(folder):
        rows = [json.loads(line) for line in (folder / "s" / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [*range(EPOCHS)]


def disturb(folder: Path, storage: str, kills: int, workers: int, seed: int) -> Counter[str]:
    """Run the sweep, kill the sweeper or a worker as soon as one trains, type the command again; returns who was killed."""
    command = (f"trainer.epochs={EPOCHS}", f"hydra.sweeper.workers={workers}", *SEARCH)
    dice = random.Random(seed)
    killed: Counter[str] = Counter()
    first: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    parent = start(folder, *command, storage=storage)
    study = opened(storage, folder)
    deadline = time.monotonic() + PATIENCE
    try:
        while parent.poll() is None:
            assert time.monotonic() < deadline, (folder / "out.log").read_text()[-3000:]
            first = {**stamps(folder), **first}
            pids = at_work(study)
            seen.update(pids)
            if killed.total() < kills and pids:
                time.sleep(0.5 * dice.random())
                victim = parent.pid if dice.random() < 0.3 else dice.choice(pids)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed["sweeper" if victim == parent.pid else "worker"] += 1
                if victim == parent.pid:
                    parent.wait()
                    parent = start(folder, *command, storage=storage)
            time.sleep(0.1)
        assert parent.returncode == 0, (folder / "out.log").read_text()[-3000:]
    finally:
        if parent.poll() is None:
            parent.kill()
        for pid in seen:  # workers of a killed sweeper end after the run that they are at
            while lease._runs(pid) and time.monotonic() < deadline:
                time.sleep(0.1)
    now = stamps(folder)
    assert {name: now[name] for name in first} == first, "a finished run was written again"
    return killed


@dataclass
class Calm:
    """The undisturbed sweep, in one process, beside the disturbed ones."""

    folder: Path
    process: subprocess.Popen[bytes]

    def done(self) -> Path:
        assert self.process.wait(timeout=PATIENCE) == 0, (self.folder / "out.log").read_text()[-3000:]
        assert finished(opened("journal", self.folder)).total() == RUNS
        return self.folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    folder = tmp_path_factory.mktemp("calm")
    begun = Calm(folder, start(folder, f"trainer.epochs={EPOCHS}", *SEARCH))
    yield begun
    if begun.process.poll() is None:
        begun.process.kill()


@pytest.mark.kills
@pytest.mark.parametrize(("storage", "workers", "kills"), [("journal", 2, 2), ("sqlite", 1, 1)])
def test_a_few_kills_change_nothing(storage: str, workers: int, kills: int, calm: Calm, tmp_path: Path) -> None:
    killed = disturb(tmp_path, storage, kills, workers, seed=1)
    assert killed.total() == kills
    assert_same(tmp_path, opened(storage, tmp_path), calm.done())


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("psycopg")
    process = subprocess.Popen([str(SCRIPT), "7200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()
    if not url and "initdb is missing" in (why := process.stderr.read()):
        pytest.skip(why.strip())
    assert url
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@pytest.fixture
def database(server: str) -> str:
    import psycopg

    name = f"study_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.rpartition("/")[0] + "/" + name


@pytest.mark.kills
def test_thirty_kills_change_nothing(calm: Calm, tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On a journal, sqlite and PostgreSQL side by side, since a process that begins anew mostly imports."""
    storages = {"journal": "journal", "sqlite": "sqlite", "postgresql": database}

    with ThreadPoolExecutor() as pool:
        storms = [pool.submit(disturb, tmp_path / name, where, 10, 2, 2) for name, where in storages.items()]
    for (name, where), killed in zip(storages.items(), [storm.result() for storm in storms], strict=True):
        study = opened(where, tmp_path / name)
        cut = sum(bool(trial.user_attrs.get("interrupted")) for _, trial in trials(study))
        ended = finished(study)
        with capsys.disabled():
            print(f"\n{name}: killed {dict(killed)}, {cut} trials cut short, {ended.total()} finished, {len(ended)} different")
        assert_same(tmp_path / name, study, calm.done())
        assert killed.total() == 10


@pytest.mark.postgres
def test_four_processes_share_a_study_on_postgresql_and_one_is_killed(calm: Calm, tmp_path: Path, database: str) -> None:
    command = (f"trainer.epochs={EPOCHS}", *SEARCH)
    children = {child.pid: child for child in [start(tmp_path, *command, storage=database) for _ in range(4)]}
    deadline = time.monotonic() + PATIENCE
    study = opened(database, tmp_path)
    while not (stamps(tmp_path) and (pids := at_work(study))):
        assert time.monotonic() < deadline, (tmp_path / "out.log").read_text()[-3000:]
        time.sleep(0.05)
    os.kill(pids[0], signal.SIGKILL)
    codes = {pid: child.wait(timeout=PATIENCE) for pid, child in children.items()}
    assert codes.pop(pids[0]) == -signal.SIGKILL
    assert set(codes.values()) == {0}, (tmp_path / "out.log").read_text()[-3000:]
    assert_same(tmp_path, study, calm.done())
    holders = {trial.user_attrs["holder"]["pid"] for _, trial in trials(study)}
    assert len(holders & children.keys()) >= 3


@pytest.mark.kills
def test_of_twenty_runs_three_fail_in_three_ways_and_each_says_why(tmp_path: Path) -> None:
    """A crash takes its worker with it; memory runs out at a single image; the loss diverges."""
    custom = ["model=custom", "model._target_=misbehaving.by_seed", "model.image_size=32", "model.weights=null", "freeze=full"]
    how = "+model.kwargs={room:{3:0},dies:{9:diverging,14:kill}}"
    command = (*TINY, *custom, how, "trainer.epochs=1", "seed=range(20)", "hydra.sweeper.workers=2", "search.max_retries=1")
    assert start(tmp_path, *command).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    summary = json.loads((tmp_path / "s/summary.json").read_text())
    assert summary["counts"] == {"done": 17, "failed": 3}
    failed = {run["name"]: run for run in summary["runs"] if run["state"] == "failed"}
    assert failed.keys() == {"s3", "s9", "s14"}
    assert "trainer.batch_size=10 does not fit into memory even one image at a time" in failed["s3"]["note"]
    assert "NonFiniteLoss: the loss is nan before anything was learned" in failed["s9"]["note"]
    assert "its process died 2 times before it had done another epoch" in failed["s14"]["note"]
    assert failed["s14"]["command"] in failed["s14"]["note"]
    for name, run in failed.items():
        assert run["command"].startswith("fourfold ")
        assert name.replace("s", "seed=") in run["command"]
    assert {trial.state for _, trial in trials(opened("journal", tmp_path))} == {TrialState.COMPLETE, TrialState.FAIL}
    assert "worker" in (tmp_path / "out.log").read_text()
    status = subprocess.run(
        [sys.executable, "-m", "fourfold", "status", str(tmp_path / "s")], capture_output=True, text=True, check=True
    ).stdout
    for run in failed.values():
        assert run["note"] in status


@pytest.mark.kills
def test_a_crash_beside_others_in_a_launcher_fails_none_of_them(tmp_path: Path) -> None:
    """joblib gives up all runs of a batch when one of its workers dies."""
    custom = ["model=custom", "model._target_=misbehaving.by_seed", "model.image_size=32", "model.weights=null", "freeze=full"]
    how = "+model.kwargs={dies:{1:exit}}"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "search.max_retries=1")
    command = (*TINY, *custom, how, "trainer.epochs=1", "seed=range(5)", *launcher)
    assert start(tmp_path, *command).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    summary = json.loads((tmp_path / "s/summary.json").read_text())
    assert summary["counts"] == {"done": 4, "failed": 1}
    before = len(trials(opened("journal", tmp_path)))
    assert start(tmp_path, *command).wait(timeout=PATIENCE) == 0  # the same command does not die of it again
    assert len(trials(opened("journal", tmp_path))) == before
