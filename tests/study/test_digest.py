"""The digest names every run once, whatever a night has done to its folder, and says how to repeat it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fourfold import cli
from fourfold.compose import compose
from fourfold.report import status
from fourfold.study.digest import Digest, Run, digest, span, verdict, write
from fourfold.study.trials import TrialView, label

from .synthetic import write_run, write_unfinished

TYPED = ["freeze=full", "dataset=digits", "dataset.shots=5", "optimizer.lr=0.3", "seed=9"]


@pytest.fixture(autouse=True)
def _errors_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the door sets it; put back afterwards


def write_started(study: Path, name: str, *, epochs_done: int = 3, typed: list[str] = TYPED, **files: Any) -> Path:
    """A run without a result, as Hydra and the run leave it; its epochs took 2 s each."""
    folder = write_unfinished(study, name, epochs_done=epochs_done)
    rows = [json.dumps({"epoch": epoch, "seconds": 2.0 * (epoch + 1)}) for epoch in range(epochs_done)]
    (folder / "metrics.jsonl").write_text("\n".join([*rows, '{"epo']))
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in typed))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def view(number: int = 0, state: Any = "running", folder: str | None = None, **given: Any) -> TrialView:
    fields = {"cell": "full", "overrides": tuple(TYPED), "value": None, "reason": None, "seconds": None, "epochs": None}
    return TrialView(number=number, state=state, folder=folder, retries=given.pop("retries", 0), **{**fields, **given})


def only(found: Digest, state: str) -> Run:
    (run,) = found.of(state)
    return run


def a_night(study: Path) -> None:
    for seed in range(3):
        write_run(study, seed=seed, seconds=10)
    failure = {"type": "NonFiniteLoss", "message": "the loss is nan\nat step 3", "traceback": "long"}
    write_started(study, "diverged", typed=[*TYPED, "model=resnet18"], failure=failure)
    write_started(study, "hopeless", epochs_done=4, pruned={"epoch": 3, "reason": "pruned after epoch 3"})
    write_started(study, "killed", typed=[*TYPED, "trainer.epochs=10"])


def test_every_run_is_told_once_with_the_reason_in_one_line(tmp_path: Path) -> None:
    a_night(tmp_path)
    found = digest(tmp_path)
    assert found.counts == {"done": 3, "pruned": 1, "failed": 1, "unfinished": 1}
    assert only(found, "failed").note == "NonFiniteLoss: the loss is nan"
    assert only(found, "pruned").note == "pruned after epoch 3"
    assert only(found, "unfinished").note == "3 of 10 epochs done"
    assert all("\n" not in run.line for run in found.runs)
    assert found.failed_rate == 1 / 5


def test_the_command_composes_to_the_run_that_it_repeats(tmp_path: Path) -> None:
    a_night(tmp_path)
    program, *words = shlex.split(only(digest(tmp_path), "failed").command)
    config = compose(words)
    assert program == "fourfold"
    assert (config.optimizer.lr, config.seed, config.model.name, config.dataset.shots) == (0.3, 9, "resnet18", 5)


def test_the_users_own_options_are_part_of_the_command(tmp_path: Path) -> None:
    folder = write_started(tmp_path, "own")
    searched = "hydra.searchpath=['file:///my conf']"
    (folder / ".hydra" / "hydra.yaml").write_text(
        f'hydra:\n  overrides:\n    hydra:\n    - "{searched}"\n    - hydra.mode=RUN\n'
    )
    assert shlex.split(only(digest(tmp_path), "unfinished").command) == ["fourfold", *TYPED, searched]


def test_time_is_that_of_all_runs_and_saved_is_what_pruned_ones_had_left(tmp_path: Path) -> None:
    a_night(tmp_path)
    found = digest(tmp_path)
    assert found.seconds == 3 * 10 + 3 * 2 + 4 * 2 + 3 * 2
    assert found.seconds_saved == (10 - 4) * 2


@pytest.mark.parametrize(("metric", "task", "best"), [("acc", "classification", 0.01), ("rmse", "regression", 0.001)])
def test_best_follows_the_metrics_direction_on_validation_alone(tmp_path: Path, metric: str, task: str, best: float) -> None:
    for lr, val, test in ((0.001, 0.5, 0.9), (0.01, 0.7, 0.1)):
        write_run(tmp_path, lr=lr, val=val, test=test, metric=metric, task=task)
    (found,) = digest(tmp_path).best
    assert (found.lr, found.metric, found.seeds) == (best, f"val/{metric}", 1)
    assert (tmp_path / found.folder / "result.json").exists()


def test_torn_and_foreign_files_stop_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    torn = write_run(tmp_path, seed=1)
    (torn / "result.json").write_text('{"status": "fini')
    write_run(tmp_path, seed=2, metrics={"val": {}, "test": {}})
    write_run(tmp_path, seed=3, seconds=float("nan"), val=float("nan"))
    for name, file, text in (
        ("rows", "metrics.jsonl", '{"epoch": 0}\n{"ep\x00\n[1]\n{"seconds": NaN}\n'),
        ("hydra", ".hydra/overrides.yaml", "- [unclosed"),
        ("config", "config.json", "[]"),
        ("bytes", "config.json", "\udcff"),
        ("pruned", "pruned.json", '{"epo'),
    ):
        (write_started(tmp_path, name) / file).write_text(text, errors="surrogateescape")
    found = digest(tmp_path)
    assert len(found.runs) == 9
    assert "result.json cannot be read" in only(found, "failed").note
    summary = json.loads(write(found).with_suffix(".json").read_text(), parse_constant=pytest.fail)
    assert summary["counts"] == found.counts


def test_an_empty_folder_is_told_and_left_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["status", str(tmp_path)]) == 0
    assert "No run has begun" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_trials_tell_what_folders_cannot(tmp_path: Path) -> None:
    a_night(tmp_path)
    views = [
        view(0, "running", "killed", retries=1),
        view(1, "running", "diverged"),  # tried again: the old failure.json says nothing of this attempt
        view(2, "pruned", "hopeless", reason="worse than the median"),
        view(3, "waiting", overrides=("freeze=bias_only",)),
        view(4, "failed", overrides=("freeze=norm_only",), reason="its process died 3 times"),
    ]
    found = digest(tmp_path, views)
    assert found.counts == {"done": 3, "pruned": 1, "failed": 1, "running": 2, "waiting": 1}
    again, anew = sorted(found.of("running"), key=lambda run: -run.retries)
    assert (again.note, again.folder, again.seconds) == ("3 of 10 epochs done", "killed", 6)
    assert "started 2 times" in again.line
    assert anew.note == ""
    assert only(found, "pruned").note == "worse than the median"
    assert found.seconds_saved == 12
    assert only(found, "failed").command == "fourfold freeze=norm_only"


def test_a_whole_result_wins_against_a_trial_that_was_not_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert digest(tmp_path, [view(0, "running", str(folder))]).counts == {"done": 1}
    assert digest(tmp_path, [view(0, "running", folder.name)]).counts == {"done": 1}


@pytest.mark.parametrize("folder", ["killed", None])
def test_a_trial_that_was_queued_again_counts_once(tmp_path: Path, folder: str | None) -> None:
    write_started(tmp_path, "killed")
    found = digest(tmp_path, [view(0, "interrupted", "killed"), view(1, "waiting", folder, retries=1)])
    assert found.counts["waiting"] == 1
    assert "interrupted" not in found.counts


@pytest.mark.parametrize(
    ("states", "rate", "code"),
    [
        ("done done done failed", 0.25, 0),
        ("done done done failed", 0.24, 1),
        ("done pruned pruned failed", 0.25, 0),
        ("done running", 0.0, 0),
        ("pruned", 1.0, 1),
        ("failed", 1.0, 1),
        ("", 1.0, 1),
    ],
)
def test_verdict(states: str, rate: float, code: int) -> None:
    runs = tuple(Run("", state, "", "", None, 0.0, 0, 0) for state in states.split())
    assert verdict(Digest("", Path(), runs, ()), rate) == code


def test_status_prints_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_night(tmp_path)
    assert cli.command(["status", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "summary.md").read_text()
    command = f"fourfold {shlex.join([*TYPED, 'model=resnet18'])}"
    for text in (printed, written):
        assert "3 done, 1 pruned, 1 failed, 1 unfinished" in text
        assert "NonFiniteLoss: the loss is nan" in text
        assert command in text
        assert "pruning saved about 12 s" in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["counts"] == {"done": 3, "pruned": 1, "failed": 1, "unfinished": 1}
    assert command in [run["command"] for run in summary["runs"]]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"summary.json", "summary.md"}  # no temporary


def test_a_study_that_cannot_be_written_to_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(found: Digest) -> Path:
        raise PermissionError("read-only")

    write_run(tmp_path)
    monkeypatch.setattr(status, "write", refuse)
    console = Console(record=True, width=100)
    status.show(tmp_path, console=console)
    told = console.export_text()
    assert "1 done" in told
    assert "read-only" in told


def test_status_refuses_what_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["status", str(tmp_path / "nothing")]) == 2
    assert "fourfold status" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (25500, "7 h 05 min")])
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_labels() -> None:
    words = (
        "quadrant=similar_small",
        "freeze_strategy=full",
        "optimizer.lr=0.0123456",
        "seed=0",
        "+dataset.shots=5",
        r"model.weights=experiment\:mine",  # as Hydra's grammar writes it
        "study=x",
    )
    assert label((*words, "logger.wandb.mode=offline", "hydra/launcher=joblib", "~dataset.kwargs.a")) == (
        "similar_small full lr=0.0123 s0 shots=5 weights=experiment:mine"
    )
