"""Any number of processes, killed at any moment, do every trial of every cell, and no trial twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from fourfold.study import lease
from fourfold.study import ledger as room
from fourfold.study.ledger import Job, Ledger
from fourfold.study.samplers import sampler
from fourfold.study.space import Cell
from fourfold.study.storage import open_storage

SPACE = {"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True)}
CELLS = [
    Cell("a", ("freeze_strategy=full",), ({"optimizer.lr": "optimizer.lr=0.001"},), SPACE, 6),
    Cell("b", ("freeze_strategy=head",), (), SPACE, 6),
    *(Cell(f"grid{i}", (f"seed={i}",), ({},), {}, 1) for i in range(4)),
]

KILLS = 12  # of each storage

WORKER = """
import os, random, sys, time
from pathlib import Path
from optuna.trial import TrialState
sys.path.insert(0, sys.argv[3])
from test_ledger import make
from fourfold.study.storage import open_storage
random.seed(int(sys.argv[4]))
ledger = make(open_storage(sys.argv[1], Path(sys.argv[2])))
while not ledger.is_done():
    ledger.reap()
    job = ledger.take()
    if job is None:
        time.sleep(0.05)
        continue
    time.sleep(2 * random.random())
    if ledger.end(job.trial_id, TrialState.COMPLETE, [float(job.number)]):
        with open(Path(sys.argv[2]) / "ended", "a") as file:
            file.write(f"{job.study} {' '.join(job.overrides)}\\n")
"""


def make(storage: optuna.storages.BaseStorage, cells: list[Cell] = CELLS, max_retries: int = 50, **options) -> Ledger:
    pruner = optuna.pruners.NopPruner()
    return Ledger(
        storage, "s", cells, ["maximize"], lambda cell: sampler("random", 0, cell.space), pruner, max_retries, **options
    )


def states(storage: optuna.storages.BaseStorage) -> dict[str, Counter[str]]:
    """Cell -> how often each key has ended as a real trial."""
    found = {}
    for summary in storage.get_all_studies():
        trials = storage.get_all_trials(summary._study_id)
        assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
        found[summary.study_name] = Counter(room._key(trial) for trial in trials if trial.state == TrialState.COMPLETE)
    return found


def work(kind: str, folder: Path, seed: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORKER, kind, str(folder), str(Path(__file__).parent), str(seed)])


def test_one_process_does_every_cell_once_and_by_turns(tmp_path: Path) -> None:
    ledger = make(open_storage("journal", tmp_path))
    order = []
    while (job := ledger.take()) is not None:
        order.append(job)
        assert ledger.end(job.trial_id, TrialState.COMPLETE, [0.5])
    assert ledger.is_done()
    assert Counter(job.cell for job in order) == {"a": 6, "b": 6, **{f"grid{i}": 1 for i in range(4)}}
    assert {job.cell for job in order[:6]} == {cell.name for cell in CELLS}
    first = next(job for job in order if job.cell == "a")
    assert first.overrides == ("freeze_strategy=full", "optimizer.lr=0.001")
    assert make(open_storage("journal", tmp_path)).take() is None  # the same command again


def test_a_trial_cut_short_is_run_again_in_its_place_and_keeps_its_values(tmp_path: Path) -> None:
    ledger = make(open_storage("journal", tmp_path), [CELLS[1]])
    jobs = [ledger.take() for _ in range(3)]
    cut = jobs[1]
    assert cut is not None
    ledger.put_back(cut.study, cut.number)
    ledger.put_back(cut.study, cut.number)  # by two processes at once
    again = ledger.take()
    assert again is not None
    assert again.overrides == cut.overrides
    assert again.number != cut.number


def begin(ledger: Ledger, epochs: int = 0) -> Job:
    """Take a trial whose run begins, and reports so many epochs."""
    job = ledger.take()
    assert job is not None
    ledger.set(job.trial_id, "folder", "somewhere")
    for epoch in range(epochs):
        ledger._storage.set_trial_intermediate_value(job.trial_id, epoch, 0.5)
    return job


def test_a_run_that_dies_too_often_is_quarantined_with_the_command_that_runs_it_alone(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    ledger = make(storage, [CELLS[2]], max_retries=2)
    for i in range(3):
        job = begin(ledger)
        assert job.suspect == (i > 0)
        ledger.put_back(job.study, job.number)
    assert ledger.take() is None
    assert ledger.is_done()
    (view,) = ledger.view()
    assert view.state == "failed"
    assert view.retries == 2
    assert "its process died 3 times" in str(view.reason)
    assert "`fourfold seed=0`" in str(view.reason)
    assert make(storage, [CELLS[2]], max_retries=2, retry_failed=True).take() is None  # the same command would die of it again
    assert make(storage, [CELLS[2]], max_retries=3, retry_failed=True).take() is not None


def test_a_run_that_gets_on_between_deaths_is_not_given_up(tmp_path: Path) -> None:
    """As on a machine that is taken away every few hours."""
    ledger = make(open_storage("journal", tmp_path), [CELLS[2]], max_retries=1)
    for death in range(6):
        job = begin(ledger, epochs=death + 1)
        ledger.put_back(job.study, job.number)
    job = begin(ledger)
    assert len(ledger._storage.get_trial(job.trial_id).intermediate_values) == 6
    ledger.put_back(job.study, job.number)
    assert ledger.is_done()


def test_whoever_only_waited_for_its_turn_has_done_nothing(tmp_path: Path) -> None:
    """A launcher whose worker is killed leaves many trials, of which few had begun; and Ctrl-C is no death."""
    ledger = make(open_storage("journal", tmp_path), [CELLS[2]], max_retries=0)
    for _ in range(3):
        job = ledger.take()
        assert job is not None
        ledger.put_back(job.study, job.number)
    job = begin(ledger)
    assert not job.suspect
    ledger.put_back(job.study, job.number, blame=False)
    job = ledger.take()
    assert job is not None
    ledger.put_back(job.study, job.number, blame=True)
    assert ledger.is_done()


def test_a_kill_does_not_change_what_is_proposed_afterwards(tmp_path: Path) -> None:
    proposed = {}
    for name, killed in (("calm", ()), ("wild", (0, 1, 2, 5))):
        ledger = make(open_storage("journal", tmp_path / name), [CELLS[0]])
        (study,) = ledger._studies.values()
        overrides: list[tuple[str, ...]] = []
        while not ledger.is_done():
            if name == "wild" and len(overrides) in (0, 3, 5):  # killed while the point was being proposed
                ledger.put_back(study.study_name, study.ask().number)
            job = ledger.take()
            assert job is not None
            if len(overrides) in killed and not job.suspect:
                ledger.set(job.trial_id, "folder", "somewhere")
                ledger.put_back(job.study, job.number)
                continue
            ledger.end(job.trial_id, TrialState.COMPLETE, [0.5])
            overrides.append(job.overrides)
        proposed[name] = overrides
    assert len(set(proposed["calm"])) == 6
    assert proposed["wild"] == proposed["calm"]


def begun(ledger: Ledger, job: Job | None, **holder: object) -> None:
    """What the process of a run writes when it begins: its folder, and who it is."""
    assert job is not None
    ledger.set(job.trial_id, "folder", "f")
    ledger.set(job.trial_id, "holder", {**lease.holder(), **holder})


def test_a_launcher_that_gave_up_costs_only_what_died(tmp_path: Path) -> None:
    """Of a batch one run has died, one goes on in a process of its own, one has not begun, one was asked to stop and saved."""
    cells = [Cell(f"grid{i}", (), ({},), {}, 1) for i in range(4)]
    ledger = make(open_storage("journal", tmp_path), cells)
    jobs = [job for _ in range(4) if (job := ledger.take())]
    dead, alive, _, stopped = jobs
    begun(ledger, dead, pid=2**22 + 1)
    with subprocess.Popen(["sleep", "60"]) as other:
        begun(ledger, alive, pid=other.pid, born=lease._born(other.pid))
        begun(ledger, stopped, pid=2**22 + 1)
        ledger.set(stopped.trial_id, "stopped", True)
        ledger.put_back_left(jobs, "a worker was killed")
        other.kill()
    assert {view.cell: (view.state, view.retries) for view in ledger.view()} == {
        "grid0": ("waiting", 1),
        "grid1": ("running", 0),
        "grid2": ("waiting", 0),
        "grid3": ("waiting", 1),
    }
    suspects = {job.cell: job.suspect for _ in range(3) if (job := ledger.take())}
    assert suspects == {"grid0": True, "grid2": False, "grid3": False}


def test_a_launcher_that_can_begin_nothing_is_not_tried_for_ever(tmp_path: Path) -> None:
    ledger = make(open_storage("journal", tmp_path), [CELLS[2]], max_retries=2)
    while (job := ledger.take()) is not None:
        ledger.put_back_left([job], "ConfigError: no such value")
    assert ledger.is_done()
    assert [(view.state, view.reason) for view in ledger.view()] == [("failed", "ConfigError: no such value")]


def test_a_failed_grid_point_is_tried_again_when_asked_and_a_failed_trial_is_not(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    first = make(storage, [CELLS[2], Cell("c", (), (), SPACE, 1)])
    for _ in range(2):
        job = first.take()
        assert job is not None
        first.end(job.trial_id, TrialState.FAIL)
    assert first.is_done()
    assert make(storage, [CELLS[2]]).take() is None
    for _ in range(2):  # two processes at once
        again = make(storage, [CELLS[2], Cell("c", (), (), SPACE, 1)], retry_failed=True)
    job = again.take()
    assert job is not None
    assert job.cell == CELLS[2].name
    assert again.take() is None


@pytest.mark.parametrize("here", [True, False], ids=["in its folder", "in a database"])
def test_a_run_whose_result_was_removed_is_run_again_when_asked(here: bool, tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    told = {"folder": tmp_path if here else None}

    def ended(*names: str, **options) -> dict[str, str]:
        """What a new process takes: the last words of each trial's command, and where it puts its result."""
        ledger = make(storage, CELLS[:3], **told, **options)
        found = {}
        while (job := ledger.take()) is not None:
            place = f"{job.cell} {job.overrides[-1]}"
            ledger.set(job.trial_id, "folder", place)
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / "result.json").touch()
            ledger.end(job.trial_id, TrialState.COMPLETE, [0.0])
            found[place] = job.overrides[-1]
        assert ledger.is_done()
        return found

    first = ended()
    assert len(first) == 13
    assert ended(retry_failed=True) == {}
    lost = ["a optimizer.lr=0.001", [place for place in first if place.startswith("b ")][2], "grid0 seed=0"]
    for place in lost:
        (tmp_path / place / "result.json").unlink()
    assert {each.folder for each in room.kept(tmp_path) if each.state == "interrupted"} == {*lost}
    views = [room.finished(storage, "s", cell, 0, told["folder"]) for cell in CELLS[:3]]
    assert list(map(len, views)) == ([5, 5, 0] if here else [6, 6, 1])
    assert ended() == {}  # a worker leaves them to whoever has typed the command
    again = ended(retry_failed=True)
    assert again == ({place: first[place] for place in lost} if here else {})
    assert ended(retry_failed=True) == {}
    if here:
        assert {each.state for each in room.kept(tmp_path)} == {"done"}


def test_another_command_in_the_same_study_has_cells_of_its_own(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    job = make(storage, [Cell("seed=0", ("freeze_strategy=full", "seed=0"), ({},), {}, 1)]).take()
    assert job is not None
    other = make(storage, [Cell("seed=0", ("freeze_strategy=head", "seed=0"), ({},), {}, 1)]).take()
    assert other is not None
    assert other.overrides == ("freeze_strategy=head", "seed=0")


def test_a_living_holder_is_left_alone_and_a_dead_one_is_not(tmp_path: Path) -> None:
    ledger = make(open_storage("journal", tmp_path), [CELLS[2]])
    job = ledger.take()
    assert job is not None
    assert ledger.reap() == 0
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    ledger.set(job.trial_id, "holder", {**lease.holder(), "pid": child.pid, "born": "1"})
    assert ledger.reap() == 1
    assert ledger.take() is not None


def test_a_holder_on_another_host_counts_by_its_beat() -> None:
    far = {**lease.holder(), "host": "elsewhere"}
    assert lease.is_alive(far, started=0)
    assert not lease.is_alive({**far, "beat": time.time() - lease.GRACE - 1}, started=0)
    assert lease.is_alive(None, started=time.time())
    assert not lease.is_alive(None, started=time.time() - lease.NAMELESS - 1)
    assert not lease.is_alive({**lease.holder(), "born": "1"}, started=0)  # the pid was given again


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_kills_at_random_change_nothing(kind: str, tmp_path: Path) -> None:
    """Two workers are killed again and again and replaced: what has ended equals an undisturbed study, each trial once."""
    undisturbed = work(kind, tmp_path / "calm", 0)
    (tmp_path / "wild").mkdir()
    workers = [work(kind, tmp_path / "wild", seed) for seed in range(2)]
    dice = random.Random(7)
    kills = 0
    deadline = time.monotonic() + 900
    while any(worker.poll() is None for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.3 + dice.random())  # a worker takes about a second to start
        victim = dice.randrange(2)
        if kills < KILLS and workers[victim].poll() is None:
            os.kill(workers[victim].pid, signal.SIGKILL)
            workers[victim].wait()
            kills += 1
            workers[victim] = work(kind, tmp_path / "wild", 100 + kills)
    assert undisturbed.wait(timeout=900) == 0
    calm, wild = (states(open_storage(kind, tmp_path / name)) for name in ("calm", "wild"))
    assert {name: len(keys) for name, keys in wild.items()} == {name: len(keys) for name, keys in calm.items()}
    assert all(count == 1 for keys in wild.values() for count in keys.values())
    assert kills == KILLS


def test_a_reader_of_one_study_does_not_see_another_in_the_same_storage(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    for name in ("s", "s/two", "ss"):
        pruner = optuna.pruners.NopPruner()
        Ledger(storage, name, CELLS[2:4], ["maximize"], lambda cell: sampler("random", 0, cell.space), pruner, 0)
    assert [each.cell for each in room.view(storage, "s")] == ["grid0", "grid1"]
    assert [each.cell for each in room.view(storage, "s/two")] == ["grid0", "grid1"]
    assert len(room.view(storage)) == 6


def test_a_point_thought_of_later_is_tried_as_long_as_there_is_budget(tmp_path: Path) -> None:
    """The same command with another `search.enqueue` goes on with the same study."""
    storage = open_storage("journal", tmp_path)

    def tried(*rates: float, budget: int) -> list[str]:
        points = tuple({"optimizer.lr": f"optimizer.lr={rate}"} for rate in rates)
        ledger = make(storage, [Cell("a", ("freeze_strategy=full",), points, SPACE, budget)], retry_failed=True)
        found = []
        while (job := ledger.take()) is not None:
            ledger.end(job.trial_id, TrialState.COMPLETE, [0.0])
            found.append(job.overrides[-1])
        assert ledger.is_done()
        return found

    assert tried(0.001, budget=1) == ["optimizer.lr=0.001"]
    assert tried(0.002, 0.001, budget=2) == ["optimizer.lr=0.002"]
    assert tried(0.003, 0.002, 0.001, budget=2) == []
