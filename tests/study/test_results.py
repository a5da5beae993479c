"""Reading a study's folder: what is whole counts, what is not is named."""

import json
from pathlib import Path

import pytest

from fourfold.study.results import collect, read_runs

from .synthetic import write_run, write_unfinished


def test_a_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_run(
        tmp_path / "s", strategy="last_blocks", lr=3e-3, seed=4, test=0.75, quadrant=("similar", "small", "classifier_only")
    )
    (result,) = collect(tmp_path)
    assert (result.strategy, result.seed, result.optimizer["lr"]) == ("last_blocks", 4, 3e-3)
    assert result.test["acc"] == 0.75
    assert result.quadrant is not None
    assert (result.quadrant.similarity, result.quadrant.textbook) == ("similar", "classifier_only")
    assert result.train_size == "5 per class"
    assert result.chance == 0.5
    assert result.study == "s"


def test_half_written_failed_and_foreign_folders_are_named_and_not_counted(tmp_path: Path) -> None:
    whole = write_run(tmp_path, seed=0)
    torn = write_run(tmp_path, seed=1)
    (torn / "result.json").write_text((torn / "result.json").read_text()[:200])
    write_run(tmp_path, seed=2, status="failed", error="the loss became nan")
    lacking = write_run(tmp_path, seed=3)
    (lacking / "result.json").write_text('{"status": "finished", "config": {}}')
    write_unfinished(tmp_path, epochs_done=3)
    crashed = write_unfinished(tmp_path, "crashed")
    (crashed / "failure.json").write_text(json.dumps({"type": "NonFiniteLoss", "message": "the loss is nan", "traceback": ""}))
    (tmp_path / "barely").mkdir()
    (tmp_path / "barely" / "config.json").write_text("{")
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "run-1" / "config.json").write_text("{}")

    assert [result.folder for result in collect(tmp_path)] == [whole]
    status = {each.status: each.reason for each in read_runs(tmp_path)[1]}
    assert len(read_runs(tmp_path)[1]) == 6
    assert set(status) == {"failed", "interrupted", "unreadable"}
    reasons = " ".join(each.reason for each in read_runs(tmp_path)[1])
    assert "the loss became nan" in reasons
    assert "NonFiniteLoss: the loss is nan" in reasons
    assert "3 of 10 epochs done" in reasons
    assert "before its first epoch" in reasons


def test_a_copy_of_a_run_does_not_count_twice(tmp_path: Path) -> None:
    first, again = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    content = json.loads((first / "result.json").read_text())
    (again / "result.json").write_text(json.dumps(content))
    assert len(collect(tmp_path)) == 1


@pytest.mark.parametrize(
    ("dataset", "words"),
    [({"shots": 5}, "5 per class"), ({"train_size": 200}, "200 images"), ({"fraction": 0.1}, "10 %"), ({}, "all")],
)
def test_sizes_in_words(tmp_path: Path, dataset: dict[str, float], words: str) -> None:
    write_run(tmp_path, shots=None, extra={"dataset": dataset})
    assert collect(tmp_path)[0].train_size == words
