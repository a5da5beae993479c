"""`-m`: cells and searches that no kill and no failure can lose."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fourfold.study.storage import open_storage

TINY = [
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=2", "dataset.val_size=10", "dataset.test_size=10",
    "model=micro_resnet", "freeze=from_scratch", "trainer.batch_size=10", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "logger=none",
]  # fmt: skip
PATIENCE = 1500  # seconds on a machine that is busy with something else


def sweep(folder: Path, *overrides: str, python: Sequence[str] = ("-m", "fourfold")) -> subprocess.Popen:
    words = ["-m", f"paths.outputs={folder}", "study=s", *TINY, *overrides]
    out = (folder.parent / f"{folder.name}.log").open("a")
    return subprocess.Popen([sys.executable, *python, *words], stdout=out, stderr=subprocess.STDOUT)


def done(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("s/*/result.json")}


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage("journal", folder / "s")
    return [trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]


def test_a_killed_grid_goes_on_and_redoes_nothing(tmp_path: Path) -> None:
    grid = ["trainer.epochs=3", "optimizer.lr=1e-3,1e-2", "seed=0,1,2"]
    child = sweep(tmp_path / "out", *grid)
    deadline = time.monotonic() + PATIENCE
    while len(done(tmp_path / "out")) < 2:
        assert time.monotonic() < deadline, (tmp_path / "out.log").read_text()[-3000:]
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = {name: (tmp_path / "out/s" / name / "result.json").stat().st_mtime_ns for name in done(tmp_path / "out")}
    assert sweep(tmp_path / "out", *grid).wait(timeout=PATIENCE) == 0
    assert len(done(tmp_path / "out")) == 6
    for name, written in before.items():
        assert (tmp_path / "out/s" / name / "result.json").stat().st_mtime_ns == written
    assert all(trial.state in (TrialState.COMPLETE, TrialState.FAIL) for trial in trials(tmp_path / "out"))
    assert sum(trial.state == TrialState.COMPLETE for trial in trials(tmp_path / "out")) == 6
    assert (tmp_path / "out/s/report.html").exists()
    lost, *_ = sorted(done(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out/s" / lost)
    before = {name: (tmp_path / "out/s" / name / "result.json").stat().st_mtime_ns for name in done(tmp_path / "out")}
    assert sweep(tmp_path / "out", *grid).wait(timeout=PATIENCE) == 0
    assert done(tmp_path / "out") == {lost, *before}  # and nothing else was touched
    assert {name: (tmp_path / "out/s" / name / "result.json").stat().st_mtime_ns for name in before} == before


def test_a_search_gives_every_cell_its_budget_and_repeats_its_best_point(tmp_path: Path) -> None:
    search = [
        "trainer.epochs=2", "optimizer=adamw,sgd", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "search.n_trials=3",
        "search.repeats=2", "search.sampler=random", "search.enqueue=[{optimizer.lr: 3e-2}]", "search.pruner=none",
    ]  # fmt: skip
    assert sweep(tmp_path / "out", *search).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    found: dict[str, list[optuna.trial.FrozenTrial]] = {}
    storage = open_storage("journal", tmp_path / "out/s")
    for study in storage.get_all_studies():
        found[study.study_name.rpartition("#")[0]] = storage.get_all_trials(study._study_id)
    assert sorted(len(each) for each in found.values()) == [2, 2, 3, 3]
    for name, each in found.items():
        assert all(trial.state == TrialState.COMPLETE for trial in each)
        if not name.endswith("-repeats"):
            textbook = {"optimizer=adamw": 1e-4, "optimizer=sgd": 1e-3}[name.removeprefix("s/")]
            assert [trial.params["optimizer.lr"] for trial in each[:2]] == [textbook, 3e-2]
            best = max(each, key=lambda trial: trial.value or 0.0)
            repeats = [dict(word.split("=", 1) for word in trial.user_attrs["command"]) for trial in found[f"{name}-repeats"]]
            assert [float(words["optimizer.lr"]) for words in repeats] == [best.params["optimizer.lr"]] * 2
            assert [words["seed"] for words in repeats] == ["0", "1"]


def test_a_failing_cell_costs_its_own_runs_only(tmp_path: Path) -> None:
    cells = ["trainer.epochs=1", "dataset.shots=2,100000", "seed=0,1", "search.max_failure_rate=0.2"]
    assert sweep(tmp_path / "out", *cells).wait(timeout=PATIENCE) == 1  # half of the runs
    assert len(done(tmp_path / "out")) == 2
    assert "preflight: shots=100000 cannot run: dataset.shots=100000, but" in (tmp_path / "out.log").read_text()
    failed = [trial for trial in trials(tmp_path / "out") if trial.state == TrialState.FAIL]
    assert len(failed) == 2
    assert all("dataset.shots=100000" in trial.user_attrs["reason"] for trial in failed)


def test_a_sweep_of_broken_cells_does_not_begin(tmp_path: Path) -> None:
    assert sweep(tmp_path / "out", "dataset.shots=100000,200000").wait(timeout=PATIENCE) == 2
    assert "fourfold: no run of this sweep can begin; shots=100000: dataset.shots=100000" in (tmp_path / "out.log").read_text()
    assert not (tmp_path / "out/s/study.journal").exists()
    wanted = ["dataset.shots=2,100000", "trainer.epochs=1", "search.preflight=stop"]
    assert sweep(tmp_path / "out", *wanted).wait(timeout=PATIENCE) == 2
    assert done(tmp_path / "out") == set()


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    grid = ["trainer.epochs=2", "optimizer.lr=1e-3,1e-2", "seed=0,1,2"]
    both = [sweep(tmp_path / "out", *grid) for _ in range(2)]
    assert [child.wait(timeout=PATIENCE) for child in both] == [0, 0], (tmp_path / "out.log").read_text()[-3000:]
    assert len(done(tmp_path / "out")) == 6
    ended = [trial for trial in trials(tmp_path / "out") if trial.state == TrialState.COMPLETE]
    assert len(ended) == 6
    assert len({trial.user_attrs["holder"]["pid"] for trial in ended}) == 2
    assert (tmp_path / "out.log").read_text().count("set-up tried in") == 1


def test_several_objectives_give_a_pareto_set(tmp_path: Path) -> None:
    search = [
        "trainer.epochs=1", "optimizer.lr=interval(0.001,0.01)", "search.n_trials=2", "search.sampler=random",
        "search.objectives=[val/acc,train/seconds]", "search.pruner=none",
    ]  # fmt: skip
    assert sweep(tmp_path / "out", *search).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    for trial in trials(tmp_path / "out"):
        (result,) = [
            json.loads(path.read_text())
            for path in (tmp_path / "out/s").glob("*/result.json")
            if path.parent.name == trial.user_attrs["folder"]
        ]
        assert trial.values == [result["metrics"]["val"]["acc"], result["seconds"]]


def test_an_objective_that_nobody_measures_fails_with_its_own_reason(tmp_path: Path) -> None:
    words = ["trainer.epochs=1", "seed=0,1", "search.objectives=[val/accc]"]
    assert sweep(tmp_path / "out", *words).wait(timeout=PATIENCE) == 0  # the runs themselves are whole
    failed = [trial for trial in trials(tmp_path / "out") if trial.state == TrialState.FAIL]
    assert len(failed) == 2
    assert all("search.objectives=val/accc is not measured" in trial.user_attrs["reason"] for trial in failed)


def test_another_launcher_runs_a_grid_and_the_process_that_only_looks_on_stays_small(tmp_path: Path) -> None:
    words = ["hydra/launcher=joblib", "trainer.epochs=1", "seed=0,1"]
    code = (
        "import sys; from fourfold.cli import command; code = command(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    )
    child = sweep(tmp_path / "out", *words, python=("-c", code))
    assert child.wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    assert len(done(tmp_path / "out")) == 2
    assert all(trial.state == TrialState.COMPLETE for trial in trials(tmp_path / "out"))


@pytest.mark.parametrize(
    ("device", "visible", "gpus"),
    [("auto", "3,7", ["3", "7"]), ("cuda", "GPU-1a", ["GPU-1a"]), ("auto", "", []), ("cpu", "3,7", [])],
)
def test_workers_get_the_gpus_that_are_visible(
    device: str, visible: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fourfold.compose import compose
    from hydra_plugins.fourfold_sweeper import _workers

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _workers.gpus(compose([f"trainer.device={device}"])) == gpus


def test_every_run_is_in_wandb_with_its_place_and_its_end(tmp_path: Path) -> None:
    search = [
        "trainer.epochs=2", "dataset.shots=2,100000", "optimizer.lr=tag(log,interval(1e-8,1e-2))", "search.n_trials=7",
        "search.enqueue=[{optimizer.lr: 1e-2},{optimizer.lr: 9e-3},{optimizer.lr: 8e-3},{optimizer.lr: 7e-3},"
        "{optimizer.lr: 6e-3},{optimizer.lr: 1e-8}]",
        "search.pruner=median", "search.objectives=[val/loss]", "logger=wandb", "logger.wandb.tags=[mine]",
    ]  # fmt: skip
    assert sweep(tmp_path / "out", *search).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    expected = {TrialState.COMPLETE: ("finished", []), TrialState.PRUNED: ("pruned", ["pruned"])}
    told = {}
    for trial in trials(tmp_path / "out"):
        status, marks = expected.get(trial.state, ("failed", ["failed"]))
        told[trial.user_attrs["folder"]] = (trial.number, status, marks, trial.user_attrs.get("reason"))
    assert {status for _, status, _, _ in told.values()} == {"finished", "pruned", "failed"}
    shown = {}
    for run_dir in (tmp_path / "out/s/wandb").glob("offline-run-*"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run_dir)]
        run = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        place, summary = run["config"]["trial"], run["summary"]
        assert place["cell"] == f"shots={run['config']['dataset']['shots']}"
        tags = run["tags"][run["tags"].index("mine") + 1 :]
        shown[Path(run["config"]["folder"]).name] = (place["number"], summary["status"], tags, summary.get("failure"))
    assert shown == told


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.kills), 2])
def test_a_sweep_that_is_asked_to_stop_saves_and_goes_on(workers: int, tmp_path: Path) -> None:
    """As scripts/slurm.sh asks, before Slurm ends the job."""
    out = tmp_path / "out"
    words = ["trainer.epochs=200", "trainer.checkpoint_seconds=1000", "seed=0,1", f"sweep.workers={workers}"]
    child = sweep(out, *words)
    deadline = time.monotonic() + PATIENCE
    while len([path for path in out.glob("s/*/metrics.jsonl") if len(path.read_text().splitlines()) > 3]) < workers:
        assert time.monotonic() < deadline, (tmp_path / "out.log").read_text()[-3000:]
        time.sleep(0.05)
    child.send_signal(signal.SIGUSR1)
    assert child.wait(timeout=PATIENCE) == 130
    assert len(done(out)) == 0
    assert not [trial for trial in trials(out) if trial.state == TrialState.RUNNING]
    begun = {path.parent.name for path in out.glob("s/*/last.pt")}
    assert len(begun) == workers
    assert sweep(out, *words).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    assert len(done(out)) == 2
    assert {trial.user_attrs["deaths"] for trial in trials(out) if "continues" in trial.user_attrs} == {0}  # nothing has died
    for name in begun:
        assert "going on from epoch" in (out / "s" / name / "fourfold.log").read_text()


def test_a_process_that_waits_for_the_runs_of_others_ends_when_asked(tmp_path: Path) -> None:
    words = ["trainer.epochs=100000", "seed=0"]
    runs = sweep(tmp_path / "out", *words)
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "out").glob("s/*/metrics.jsonl")):
        assert time.monotonic() < deadline, (tmp_path / "out.log").read_text()[-3000:]
        time.sleep(0.05)
    waits = sweep(tmp_path / "out", *words)
    time.sleep(8)
    waits.send_signal(signal.SIGUSR1)
    assert waits.wait(timeout=PATIENCE) == 130
    assert runs.poll() is None
    runs.terminate()
    assert runs.wait(timeout=PATIENCE) == 130
