"""On a GPU: no step waits for it, its memory may run out; cut, stacked, resumed and compiled runs agree but for rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourfold import batched, loop
from fourfold import run as room
from fourfold.activations import Near
from fourfold.cli import command
from fourfold.compose import compose
from fourfold.config import RunConfig
from fourfold.files import read_json, read_jsonl
from fourfold.run import run
from fourfold.trial import Pruned
from test_chorus import together
from test_run import Ends, record, same

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
WORDS = (
    "dataset=fake", "dataset.kwargs.size=328", "dataset.kwargs.test_size=64", "dataset.val_size=64", "model=resnet18",
    "trainer.epochs=3", "trainer.batch_size=64", "trainer.device=cuda", "trainer.progress=false", "logger=none",
)  # fmt: skip
STRATEGIES = ("freeze=classifier_only", "freeze=last_blocks", "freeze=lp_ft")
TOLERANCE = 0.01  # of a loss: convolutions round to TF32, in batches of different sizes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "start-0123456789ab"
    run(compose([*WORDS, "freeze=from_scratch", "trainer.epochs=1"]), folder)
    return folder / "best.pt"


def config(weights: Path, folder: Path, *words: str) -> RunConfig:
    return compose([*WORDS, f"model.weights={weights}", f"paths.cache={folder}/cache", *words])


def losses(folder: Path) -> list[float]:
    return [row[name] for row in read_jsonl(folder / "metrics.jsonl") for name in ("train/loss", "val/loss")]


@contextmanager
def waiting(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("workers", [0, 1])
def test_grey_images_travel_as_one_plane(workers: int, tmp_path: Path) -> None:
    """Which the three channels of a pretrained model share, and which could not be pinned otherwise."""
    words = ("dataset=digits", "model=micro_resnet", "freeze=from_scratch", "trainer.epochs=2", "trainer.deterministic=true")
    asked = [*WORDS[7:], *words, f"dataset.loader.num_workers={workers}"]
    pinned = run(compose(asked), tmp_path / "pinned")
    plain = run(compose([*asked, "dataset.loader.pin_memory=false"]), tmp_path / "plain")
    assert pinned["metrics"] == plain["metrics"]
    assert pinned["metrics"]["test"]["acc"] > 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["freeze=full", *STRATEGIES])
def test_nothing_waits_for_the_gpu_inside_an_epoch(
    strategy: str, precision: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[str] = []
    train, settle = room.train_one_epoch, loop._settle

    def trained(*given: Any, **more: Any) -> Any:
        with waiting("error"):
            epochs.append(str(torch.cuda.get_sync_debug_mode()))
            return train(*given, **more)

    def settled(*given: Any) -> None:
        with waiting("default"):
            settle(*given)

    monkeypatch.setattr(room, "train_one_epoch", trained)
    monkeypatch.setattr(loop, "_settle", settled)
    run(config(weights, tmp_path, strategy, f"trainer.precision={precision}", "trainer.clip_norm=1.0"), tmp_path / "run")
    assert epochs == ["2"] * 3


def test_nothing_waits_for_the_gpu_while_many_heads_train(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    step = batched._Stack.step

    def quietly(stack: Any, at: int) -> Any:
        with waiting("error"):
            steps.append(at)
            return step(stack, at)

    monkeypatch.setattr(batched._Stack, "step", quietly)
    outcomes = together({tmp_path / str(seed): config(weights, tmp_path, STRATEGIES[0], f"seed={seed}") for seed in range(2)})
    assert [each["status"] for each in outcomes.values()] == ["finished"] * 2
    assert len(steps) >= 12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stored_activations_give_the_numbers_of_the_whole_network(strategy: str, weights: Path, tmp_path: Path) -> None:
    cut = run(config(weights, tmp_path, strategy), tmp_path / "cut")
    whole = run(config(weights, tmp_path, strategy, "cache.activations=off"), tmp_path / "whole")
    assert len(read_jsonl(tmp_path / "cut/metrics.jsonl")) == 3
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=TOLERANCE, abs=TOLERANCE)
    assert cut["metrics"]["test"]["loss"] == pytest.approx(whole["metrics"]["test"]["loss"], rel=TOLERANCE, abs=TOLERANCE)


def test_rows_are_gathered_where_they_are_needed(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Near] = []
    create = Near.__init__
    monkeypatch.setattr(Near, "__init__", lambda near, *given: (create(near, *given), made.append(near))[0])
    run(config(weights, tmp_path, STRATEGIES[1]), tmp_path / "run")
    assert {len(near) for near in made} == {64, 328}  # of validation, and of both from then on
    assert all(near.take(np.array([3, 0]))[0].is_cuda for near in made)


@pytest.mark.parametrize(
    "optimizer",
    [["optimizer=sgd"], ["optimizer=adamw"], ["optimizer.name=lamb", "~optimizer.kwargs.fused"]],
    ids=["sgd", "adamw", "lamb"],
)
def test_heads_among_others_are_the_heads_alone(optimizer: list[str], weights: Path, tmp_path: Path) -> None:
    heads = [
        config(weights, tmp_path, STRATEGIES[0], *optimizer, f"optimizer.lr={rate}", f"seed={seed}")
        for rate in (1e-3, 1e-2)
        for seed in (0, 1)
    ]
    for i, each in enumerate(heads):
        run(each, tmp_path / f"alone{i}")
    together({tmp_path / f"among{i}": each for i, each in enumerate(heads)})
    for i in range(len(heads)):
        assert losses(tmp_path / f"among{i}") == pytest.approx(losses(tmp_path / f"alone{i}"), rel=TOLERANCE)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(weights: Path, tmp_path: Path) -> None:
    hard = config(weights, tmp_path, "freeze=gradual", "transform=light", "trainer.deterministic=true", "trainer.ema_decay=0.9")
    run(hard, tmp_path / "straight")
    for epoch in (0, 1):
        with pytest.raises(Pruned):
            run(hard, tmp_path / "resumed", trial=Ends(epoch))
    run(hard, tmp_path / "resumed")
    for ours, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(ours, straight)


def test_a_run_whose_batches_are_too_large_goes_on_with_smaller_ones(weights: Path, tmp_path: Path) -> None:
    words = ("freeze=full", "trainer.batch_size=256", "trainer.eval_batch_size=256", "dataset.kwargs.image_size=224")
    torch.cuda.empty_cache()
    room_for = 4e9 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(room_for)
    try:
        result = run(config(weights, tmp_path, *words, "trainer.epochs=1"), tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result["status"] == "finished"
    assert result["accumulate"] > 1
    assert result["memory_retries"] >= 1
    small = run(config(weights, tmp_path, "freeze=classifier_only", "trainer.epochs=1"), tmp_path / "small")
    assert small["peak_memory_bytes"] < result["peak_memory_bytes"] / 2


@pytest.mark.parametrize(
    "words", [("trainer.precision=auto", "trainer.channels_last=auto"), ("trainer.precision=fp16",)], ids=" ".join
)
def test_lower_precision_learns(words: tuple[str, ...], weights: Path, tmp_path: Path) -> None:
    result = run(config(weights, tmp_path, "freeze=full", "trainer.epochs=6", *words), tmp_path / "run")
    assert result["metrics"]["test"]["acc"] > 0.5


def test_a_compiled_run_has_the_losses_of_a_plain_one(weights: Path, tmp_path: Path) -> None:
    words = ("freeze=full", "optimizer=sgd", "optimizer.lr=1e-3")
    plain = run(config(weights, tmp_path, *words), tmp_path / "plain")
    compiled = run(config(weights, tmp_path, *words, "trainer.compile=true"), tmp_path / "compiled")
    assert plain["compile_seconds"] is None
    assert compiled["compile_seconds"] > 0
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=0.02)


def test_workers_share_a_gpu(weights: Path, tmp_path: Path) -> None:
    asked = [*WORDS, f"model.weights={weights}", f"paths.cache={tmp_path}/cache", f"paths.outputs={tmp_path}", "study=s"]
    assert command(["-m", *asked, "freeze=full", "optimizer.lr=1e-3,1e-4", "sweep.workers=2"]) == 0
    results = [read_json(file) for file in tmp_path.glob("s/*/result.json")]
    assert len(results) == 2
    assert {result["device"] for result in results} == {torch.cuda.get_device_name()}
