"""Studies on a local Ray, through Hydra's launcher for it."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from test_sweeper import PATIENCE, done, sweep, trials

pytest.importorskip("hydra_plugins.hydra_ray_launcher")
pytestmark = pytest.mark.ray
SOURCE = Path(__file__).parents[2] / "src"
RAY = [
    "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false",
    f"+hydra.launcher.ray.init.runtime_env.env_vars.PYTHONPATH={SOURCE}",  # for a copy that is not installed
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ray" not in request.config.option.markexpr:
        pytest.skip("takes minutes: ask for it by -m ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 starves them on a busy machine


def told(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.log").read_text()[-3000:]


def epochs(folder: Path) -> dict[str, int]:
    """Epochs that each run has written down."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in folder.glob("s/*/metrics.jsonl")}


def test_ray_runs_a_grid(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sweep(out, *RAY, "trainer.epochs=1", "seed=0,1,2").wait(timeout=PATIENCE) == 0, told(out)
    assert len(done(out)) == 3
    assert [trial.state for trial in trials(out)] == [TrialState.COMPLETE] * 3


def test_ray_prunes_a_search(tmp_path: Path) -> None:
    out = tmp_path / "out"
    search = [
        "trainer.epochs=9", "optimizer.lr=interval(1e-6,1e-1)", "search.n_trials=6", "search.sampler=random",
        "search.objectives=[val/loss]", "search.pruner=asha", "hydra.sweeper.n_jobs=3",
    ]  # fmt: skip
    assert sweep(out, *RAY, *search).wait(timeout=PATIENCE) == 0, told(out)
    states = Counter(trial.state for trial in trials(out))
    assert states[TrialState.PRUNED] >= 1
    assert states[TrialState.COMPLETE] >= 1
    assert states.total() == states[TrialState.PRUNED] + states[TrialState.COMPLETE] == 6
    for trial in trials(out):
        assert (len(trial.intermediate_values) < 9) == (trial.state == TrialState.PRUNED)
        assert epochs(out)[trial.user_attrs["folder"]] == len(trial.intermediate_values)


@pytest.mark.parametrize("retries", [0, 3])  # Ray's own default is 3
def test_a_killed_worker_loses_no_result_and_its_run_goes_on(retries: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["trainer.epochs=80", "trainer.checkpoint_seconds=0", "seed=0,1"]
    child = sweep(out, *RAY, *words, f"+hydra.launcher.ray.remote.max_retries={retries}")
    deadline = time.monotonic() + PATIENCE
    while not (len(epochs(out)) == 2 and min(epochs(out).values()) > 5):
        assert time.monotonic() < deadline, told(out)
        time.sleep(0.1)
    victim = next(trial for trial in trials(out) if "seed=0" in trial.user_attrs["command"])
    os.kill(victim.user_attrs["holder"]["pid"], signal.SIGKILL)
    assert child.wait(timeout=PATIENCE) == 0, told(out)
    assert len(done(out)) == 2
    assert set(epochs(out).values()) == {80}
    states = Counter(trial.state for trial in trials(out))
    # without retries of Ray's, the sweep queues the trial again; with them the trial stays where it was
    assert states == ({TrialState.COMPLETE: 2, TrialState.FAIL: 1} if retries == 0 else {TrialState.COMPLETE: 2})
    assert "going on from epoch" in (out / "s" / victim.user_attrs["folder"] / "fourfold.log").read_text()
