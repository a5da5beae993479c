"""Studies on a real Slurm of one node: Hydra's submitit launcher, and the array job of scripts/slurm.sh."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from test_sweeper import PATIENCE, TINY, done, sweep, trials

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.slurm
SCRIPTS = Path(__file__).parents[2] / "scripts"
SUBMITIT = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def _slurm(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if "slurm" not in request.config.option.markexpr:
        pytest.skip("takes minutes: ask for it by -m slurm")
    process = subprocess.Popen(
        [str(SCRIPTS / "one_node_slurm.sh"), "3000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    told = dict(line.strip().partition("=")[::2] for line in (process.stdout.readline(), process.stdout.readline()) if line)
    if not told and ("is missing" in (why := process.stderr.read()) or "needs root" in why):
        pytest.skip(why.strip())
    assert set(told) == {"SLURM_CONF", "SACCT"}, process.stderr.read()
    yield told
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@pytest.fixture(autouse=True)
def _exported(_slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", _slurm["SLURM_CONF"])
    here = Path(sys.executable).parent  # where `fourfold` is
    monkeypatch.setenv("PATH", f"{_slurm['SACCT']}:{here}:{os.environ['PATH']}")


def wait_for(what: Callable[[], object], log: Callable[[], str], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, log()[-3000:]
        time.sleep(0.2)


def queue() -> str:
    """The Slurm jobs that have not ended, one a line: number and state."""
    return subprocess.run(["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True).stdout


def array(folder: Path, tasks: int, *overrides: str) -> str:
    """Submit scripts/slurm.sh for the study of `sweep`; returns the job's number."""
    words = [f"paths.outputs={folder}", "study=s", *TINY, *overrides]
    slurm = ["sbatch", "--parsable", f"--array=0-{tasks - 1}", "--cpus-per-task=1", f"--chdir={folder.parent}"]
    done = subprocess.run([*slurm, str(SCRIPTS / "slurm.sh"), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def told(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted([*folder.parent.glob("*.log"), *folder.glob("s/.submitit/*/*.err")]))


def epochs(folder: Path) -> dict[str, int]:
    """Epochs that each run has written down."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in folder.glob("s/*/metrics.jsonl")}


def counted(folder: Path) -> list[FrozenTrial]:
    """Without void trials: tasks that begin at the same moment may both put a point in the queue, and one of them gives way."""
    return [trial for trial in trials(folder) if not trial.user_attrs.get("void")]


def test_submitit_runs_a_grid(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(out, *SUBMITIT, "trainer.epochs=1", "seed=0,1").wait(timeout=PATIENCE) == 0, told(out)
    assert len(done(out)) == 2
    assert [trial.state for trial in trials(out)] == [TrialState.COMPLETE] * 2
    assert len({trial.user_attrs["holder"]["pid"] for trial in trials(out)}) == 2  # each in a job of its own
    assert len(list(out.glob("s/.submitit/*/*_submission.sh"))) == 1  # as one array


def test_submitit_prunes_a_search(tmp_path: Path) -> None:
    out = tmp_path / "out"
    search = [
        "trainer.epochs=9", "optimizer.lr=interval(1e-6,1e-1)", "search.n_trials=6", "search.sampler=random",
        "search.objectives=[val/loss]", "search.pruner=asha", "hydra.sweeper.n_jobs=3",
    ]  # fmt: skip
    assert sweep(out, *SUBMITIT, *search).wait(timeout=PATIENCE) == 0, told(out)
    states = Counter(trial.state for trial in trials(out))
    assert states[TrialState.PRUNED] >= 1
    assert states[TrialState.COMPLETE] >= 1
    assert states.total() == states[TrialState.PRUNED] + states[TrialState.COMPLETE] == 6
    for trial in trials(out):
        told_epochs = len(trial.intermediate_values)
        assert (told_epochs < 9) == (trial.state == TrialState.PRUNED)
        assert epochs(out)[trial.user_attrs["folder"]] == told_epochs


@pytest.mark.parametrize(("how", "deaths"), [("kill -9", 1), ("scancel", 0)])  # scancel lets the run save
def test_a_killed_job_costs_the_others_nothing_and_runs_again(how: str, deaths: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = sweep(out, *SUBMITIT, "trainer.epochs=300", "trainer.checkpoint_seconds=0", "seed=0,1")
    wait_for(lambda: len(epochs(out)) == 2 and min(epochs(out).values()) > 5, lambda: told(out))
    (victim, *_) = [trial for trial in trials(out) if "seed=0" in trial.user_attrs["command"]]
    if how == "kill -9":
        os.kill(victim.user_attrs["holder"]["pid"], signal.SIGKILL)
    else:
        subprocess.run(["scancel", queue().split()[0]], check=True)
    assert child.wait(timeout=PATIENCE) == 0, told(out)
    assert len(done(out)) == 2
    states = Counter(trial.state for trial in trials(out))
    assert states == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}  # the killed one, queued again once
    (again,) = [trial for trial in trials(out) if "continues" in trial.user_attrs]
    assert again.user_attrs["deaths"] == deaths
    assert "going on from epoch" in (out / "s" / again.user_attrs["folder"] / "fourfold.log").read_text()
    assert set(epochs(out).values()) == {300}


def test_jobs_of_a_killed_sweep_go_on_and_the_same_command_waits_for_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*SUBMITIT, "trainer.epochs=300", "seed=0,1"]
    first = sweep(out, *words)
    wait_for(lambda: len(epochs(out)) == 2 and min(epochs(out).values()) > 5, lambda: told(out))
    first.kill()
    first.wait()
    assert sweep(out, *words).wait(timeout=PATIENCE) == 0, told(out)
    assert [trial.state for trial in trials(out)] == [TrialState.COMPLETE] * 2
    assert len(list(out.glob("s/.submitit/*/*_submission.sh"))) == 1  # nothing was submitted again


def test_submitit_requeues_a_job_that_slurm_warns_and_it_goes_on(tmp_path: Path) -> None:
    """USR2 is submitit's: the run saves first, then submitit requeues the job, which finds its trial where it was."""
    out = tmp_path / "out"
    child = sweep(out, *SUBMITIT, "trainer.epochs=300", "trainer.checkpoint_seconds=1000", "seed=0,1")
    wait_for(lambda: len(epochs(out)) == 2 and min(epochs(out).values()) > 5, lambda: told(out))
    subprocess.run(["scancel", "--signal=USR2", queue().split()[0]], check=True)
    assert child.wait(timeout=PATIENCE) == 0, told(out)
    assert [trial.state for trial in trials(out)] == [TrialState.COMPLETE] * 2
    logs = [path.read_text() for path in out.glob("s/*/fourfold.log")]
    assert sum("going on from epoch" in log for log in logs) == 1
    assert set(epochs(out).values()) == {300}


def test_an_array_shares_one_study_exactly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    array(out, 2, "trainer.epochs=5", "seed=0,1,2,3,4,5")
    wait_for(lambda: not queue(), lambda: told(out) + queue())
    assert len(done(out)) == 6
    assert [trial.state for trial in counted(out)] == [TrialState.COMPLETE] * 6, told(out)
    assert len({trial.user_attrs["holder"]["pid"] for trial in trials(out)}) == 2
    assert (out / "s/report.html").exists()


def test_an_array_task_that_slurm_warns_saves_returns_to_the_queue_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = array(out, 2, "trainer.epochs=300", "trainer.checkpoint_seconds=1000", "seed=0,1")
    wait_for(lambda: len(epochs(out)) == 2 and min(epochs(out).values()) > 5, lambda: told(out) + queue())
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], check=True)
    wait_for(lambda: f"{job}_0 PENDING" in queue() or not queue(), lambda: told(out) + queue())
    assert f"{job}_0 PENDING" in queue()
    wait_for(lambda: not queue(), lambda: told(out) + queue())
    assert "stopped and saved at epoch" in (tmp_path / f"fourfold-{job}_0.log").read_text()
    assert "stopped" not in (tmp_path / f"fourfold-{job}_1.log").read_text()
    assert set(epochs(out).values()) == {300}
    logs = [path.read_text() for path in out.glob("s/*/fourfold.log")]
    assert sum("going on from epoch" in log for log in logs) == 1
    again = [trial for trial in trials(out) if "continues" in trial.user_attrs]
    assert [trial.user_attrs["deaths"] for trial in again] == [0]  # it was asked to stop: nothing died
    assert Counter(trial.state for trial in counted(out)) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}
