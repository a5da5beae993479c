"""A run that runs out of memory goes on with less at once: the same optimizer steps, and nobody needs to get up at night."""

import gc
import json
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold.compose import compose
from fourfold.config import RunConfig
from fourfold.memory import OutOfMemory, Portion, release, watched
from fourfold.run import run
from fourfold.trial import Pruned
from test_run import Ends, record, same

TINY = [
    "dataset=glyph_digits", "model=custom", "model._target_=misbehaving.small", "model.image_size=32", "model.weights=null",
    "freeze=full", "logger=none", "dataset.train_size=45", "dataset.val_size=30", "dataset.test_size=30", "optimizer=sgd",
    "trainer.epochs=3", "trainer.batch_size=20", "trainer.device=cpu", "trainer.progress=false", "trainer.threads=1",
    "transform=standard",
]  # fmt: skip


def config(*overrides: str) -> RunConfig:
    return compose([*TINY, *overrides])


def without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {key: without(part, *keys) for key, part in value.items() if key not in keys}
    return value


def test_it_finishes_with_the_losses_of_one_that_had_split_its_batches_from_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    greedy = config("+model.kwargs.room=6", "+model.kwargs.eval_room=40")
    with caplog.at_level(logging.WARNING):
        result = run(greedy, tmp_path / "greedy")
    run(config("+model.kwargs.room=6", "trainer.accumulate=4"), tmp_path / "split")
    # 20 at once, then 10, then 5
    assert (result["accumulate"], result["eval_batch_size"], result["memory_retries"]) == (4, 32, 2)
    assert result["config"]["trainer"]["accumulate"] == 1
    different = ("run_id", "config", "memory_retries", "eval_batch_size")
    for ours, asked in zip(record(tmp_path / "greedy")[:3], record(tmp_path / "split")[:3], strict=True):
        assert same(ours, asked)
    ours, asked = record(tmp_path / "greedy")[3], record(tmp_path / "split")[3]
    assert without(ours, *different) == without(asked, *different)
    (*_, last) = [each.getMessage() for each in caplog.records if "out of memory" in each.getMessage()]
    assert "trainer.accumulate=4 (micro-batches of 5, " in last
    assert not (tmp_path / "greedy/failure.json").exists()


def test_without_batch_statistics_the_split_run_equals_the_whole_one_but_for_rounding(tmp_path: Path) -> None:
    split = run(config("+model.kwargs.room=5"), tmp_path / "split")
    whole = run(config(), tmp_path / "whole")
    assert (split["accumulate"], whole["accumulate"]) == (4, 1)
    assert split["metrics"]["train"]["loss"] == pytest.approx(whole["metrics"]["train"]["loss"], rel=1e-5)  # float32 sums
    assert split["metrics"]["val"]["loss"] == pytest.approx(whole["metrics"]["val"]["loss"], rel=1e-5)


def test_an_evaluation_alone_changes_nothing(tmp_path: Path) -> None:
    small = run(config("+model.kwargs.eval_room=10"), tmp_path / "small")
    whole = run(config(), tmp_path / "whole")
    assert (small["accumulate"], small["eval_batch_size"], small["memory_retries"]) == (1, 8, 4)
    assert small["metrics"]["train"] == whole["metrics"]["train"]
    assert small["metrics"]["test"]["acc"] == whole["metrics"]["test"]["acc"]


def test_a_later_epoch_goes_on_from_the_checkpoint_and_a_resumed_run_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is enough until the third epoch, as it may be until the backbone is unfrozen."""
    import misbehaving

    images: list[int] = []
    straight = misbehaving.Small.forward

    def crowded(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            images.append(len(x))
            self.room = 10**6 if sum(images) <= 2 * 45 else 10
        return straight(self, x)

    monkeypatch.setattr(misbehaving.Small, "forward", crowded)
    with pytest.raises(Pruned):
        run(config("trainer.epochs=4", "trainer.checkpoint_seconds=0"), tmp_path, trial=Ends(2))
    assert images[:7] == [20, 20, 5, 20, 20, 5, 20]
    assert images[7:] == [10, 10, 10, 10, 5]
    resumed = len(images)
    result = run(config("trainer.epochs=4"), tmp_path)
    assert images[resumed:] == [10, 10, 10, 10, 5]  # not 20 again
    assert (result["accumulate"], result["memory_retries"], result["epochs"]) == (2, 1, 4)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


def test_one_image_too_many_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"trainer.batch_size=20 does not fit into memory even one image at a time .*choose"):
        run(config("+model.kwargs.room=0"), tmp_path / "train")
    with pytest.raises(OutOfMemory, match=r"trainer.eval_batch_size=1 does not fit into memory .*choose a smaller model.name"):
        run(config("+model.kwargs.eval_room=0"), tmp_path / "eval")
    assert json.loads((tmp_path / "train/failure.json").read_text())["type"] == "OutOfMemory"


@pytest.mark.parametrize(("batch_size", "counts"), [(32, [2, 4, 8, 16, 32]), (10, [2, 5, 10]), (7, [7]), (45, [3, 9, 45])])
def test_every_micro_batch_divides_the_batch(batch_size: int, counts: list[int]) -> None:
    portion = Portion(1, 128)
    for count in counts:
        portion = portion.smaller(OutOfMemory("", training=True), batch_size)
        assert portion.accumulate == count
    with pytest.raises(OutOfMemory):
        portion.smaller(OutOfMemory("", training=True), batch_size)


def test_what_a_failed_attempt_held_is_let_go() -> None:
    def attempt() -> None:
        net = torch.nn.Linear(2, 2)
        held.append(weakref.ref(net))
        with watched(1, training=True):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    held: list[weakref.ref[torch.nn.Module]] = []
    try:
        attempt()
    except OutOfMemory as error:
        gc.collect()
        assert held[0]() is not None  # the traceback of the one that it was made from
        release(error)
        assert held[0]() is None


def test_several_processes_try_nothing_again() -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"under torchrun .*larger trainer.accumulate"), watched(2, training=True):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.raises(RuntimeError, match="shapes"), watched(1, training=True):
        raise RuntimeError("shapes")
    with pytest.raises(OutOfMemory, match="CUBLAS"), watched(1, training=True):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
