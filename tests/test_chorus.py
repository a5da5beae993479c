"""Runs that are told in step give the numbers that each gives alone, whatever becomes of the others."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold import batched, models
from fourfold import run as story
from fourfold.assembly import Parts
from fourfold.chorus import Chorus
from fourfold.compose import compose
from fourfold.config import ConfigError, RunConfig
from fourfold.files import read_json, read_jsonl
from fourfold.loop import NonFiniteLoss
from fourfold.models import weights as weights_of
from fourfold.run import run
from fourfold.seeding import seed_everything
from fourfold.stock import Stock
from fourfold.study.ledger import kept
from fourfold.trial import NoTrial, Pruned

TINY = [
    "dataset=digits", "dataset.shots=5", "dataset.val_size=40", "dataset.test_size=40", "model=micro_resnet",
    "freeze=classifier_only", "trainer.batch_size=16", "trainer.epochs=5", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "logger=none",
]  # fmt: skip
PATIENCE = 1500  # seconds on a machine that is busy with something else
HEADS = (
    ("optimizer.lr=0.3", "seed=0"),
    ("optimizer.lr=0.003", "seed=1", "trainer.loss.label_smoothing=0.1"),
    ("optimizer.lr=0.03", "seed=1", "optimizer.weight_decay=0.5"),
    ("optimizer.lr=0.1", "seed=0", "trainer.patience=1", "trainer.clip_norm=0.1"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "start-0123456789ab"
    run(compose([*TINY, "freeze=from_scratch", "trainer.epochs=1"]), folder)
    return folder / "best.pt"


def config(weights: Path, cache: Path, *words: str) -> RunConfig:
    return compose([*TINY, f"model.weights={weights}", f"paths.cache={cache}", *words])


def together(runs: dict[Path, RunConfig], trials: dict[Path, NoTrial] | None = None) -> dict[Path, Any]:
    """What each run returns or raises, all of them told in step."""
    outcomes: dict[Path, Any] = {}
    shared = Stock()

    def attempt(folder: Path) -> None:
        try:
            outcomes[folder] = run(runs[folder], folder, trial=(trials or {}).get(folder), drive=chorus, shared=shared)
        except Exception as error:
            outcomes[folder] = error

    chorus = Chorus(deque(partial(attempt, folder) for folder in runs))
    chorus.begin()
    return outcomes


def record(folder: Path) -> tuple[Any, Any, Any]:
    """What a run leaves, without what a clock wrote."""
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "metrics.jsonl")]
    result = read_json(folder / "result.json")
    kept = {key: result[key] for key in ("run_id", "metrics", "confusion", "best_epoch", "epochs", "manifest_hash", "frontier")}
    return rows, kept | {"proof": result["proof"], "test_opened": result["test_opened"]}, tensors(folder / "best.pt")


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return weights_of.read(file)


def close(a: Any, b: Any) -> bool:
    """Numbers to six digits: a stack of matrices may be multiplied in another order than one of them."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, torch.Tensor):
        return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-6))
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) if isinstance(a, float) else a == b


@pytest.mark.parametrize(
    "words",
    [("optimizer=adamw",), ("optimizer=sgd", "trainer.precision=bf16"), ("optimizer.name=lamb", "~optimizer.kwargs.fused")],
    ids=" ".join,
)
def test_a_head_among_others_is_the_head_alone(
    words: tuple[str, ...], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates, decays, seeds (of images, head and order), label smoothing, and one that stops early."""
    sizes: list[int] = []
    truly = batched.train_one_epoch
    monkeypatch.setattr("fourfold.chorus.train_one_epoch", lambda *given: sizes.append(len(given[0])) or truly(*given))
    for i, head in enumerate(HEADS):
        run(config(weights, tmp_path / "cache", *words, *head), tmp_path / f"alone{i}")
    runs = {tmp_path / f"among{i}": config(weights, tmp_path / "other", *words, *head) for i, head in enumerate(HEADS)}
    outcomes = together(runs)
    assert sizes[0] == len(HEADS)
    assert len(sizes) >= 5
    for i, folder in enumerate(runs):
        assert outcomes[folder]["status"] == "finished"
        mine, expected = record(folder), record(tmp_path / f"alone{i}")
        assert close(mine, expected)
        assert mine[1]["proof"] == expected[1]["proof"]
    assert {len(read_jsonl(folder / "metrics.jsonl")) for folder in runs} > {5}, "one of them has stopped early"


@pytest.mark.parametrize(
    ("words", "evaluated"),
    [
        (("trainer.val_every=2",), 0),
        (("trainer.eval_batch_size=16", "trainer.limit_eval_batches=2"), 0),
        (("trainer.precision=bf16",), 0),
        ((), 5),  # more answers than a stack holds
    ],
    ids=["seldom", "in part", "bf16", "too many"],
)
def test_heads_are_validated_at_once_with_what_each_measures_alone(
    words: tuple[str, ...], evaluated: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "ANSWERS", batched.ANSWERS if words else 100)
    sizes = ("dataset.val_size=40", "dataset.val_size=30", "dataset.val_size=40")
    runs = {
        tmp_path / f"together{i}": config(weights, tmp_path / "cache", size, f"seed={i}", f"optimizer.lr=0.{i + 1}", *words)
        for i, size in enumerate(sizes)
    }
    counted: list[Any] = []
    own = story.evaluate
    monkeypatch.setattr(story, "evaluate", lambda *given, **named: counted.append(given) or own(*given, **named))
    assert not [each for each in together(runs).values() if isinstance(each, Exception)]
    assert len(counted) == len(runs) * (1 + evaluated), "the test split, and the validation split where each does it by itself"
    for i, (folder, each) in enumerate(runs.items()):
        alone = tmp_path / f"alone{i}"
        run(each, alone)
        rows, others = (read_jsonl(place / "metrics.jsonl") for place in (folder, alone))
        assert [[*row] for row in rows] == [[*row] for row in others]
        for row, other in zip(rows, others, strict=True):
            measured = {key: value for key, value in other.items() if key.startswith("val/")}
            assert {key: row[key] for key in measured} == pytest.approx(measured, rel=1e-4, abs=1e-5)


def test_the_head_is_proven_once_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every seed has the network and the numbers that it would have had alone."""
    asked = compose([*TINY, "model=resnet18", "model.weights=null", "model.image_size=32", "freeze=from_scratch"])
    torch.save(models.create(asked.model, 3).net.state_dict(), tmp_path / "start.pt")
    words = ("model=resnet18", "model.image_size=32", f"model.weights={tmp_path}/start.pt")
    proven: list[tuple[str, ...]] = []
    prove = models.heads.prove
    monkeypatch.setattr(models.heads, "prove", lambda net, names, *given: proven.append(names) or prove(net, names, *given))
    shared = Stock()
    for seed in (0, 1):
        config = compose([*TINY, *words, f"seed={seed}"])
        seed_everything(seed)
        made, after = shared.model(config, 10, torch.device("cpu")).net.state_dict(), torch.rand(1)
        seed_everything(seed)
        alone = models.create(config.model, 10, in_chans=config.dataset.in_chans).net.state_dict()
        assert all(torch.equal(made[name], alone[name]) for name in alone)
        assert torch.equal(torch.rand(1), after)
    assert proven == [("fc",)] * 3, "of the stock's first, and of the two alone"


class Prunes(NoTrial):
    """A search that ends a run after its second epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def report(self, value: float, step: int) -> None:
        self.epochs += 1

    def should_prune(self) -> bool:
        return self.epochs == 2


def test_what_becomes_of_one_is_nothing_to_the_others(weights: Path, tmp_path: Path) -> None:
    """One is pruned, one diverges, one was done before."""
    heads = {"a": HEADS[0], "pruned": HEADS[1], "nan": ("optimizer.lr=1e38", "seed=2"), "b": HEADS[2], "done": HEADS[3]}
    given = {name: config(weights, tmp_path / "cache", "optimizer=sgd", *words) for name, words in heads.items()}
    for name in ("a", "b", "done"):
        run(given[name], tmp_path / "alone" / name)
    with pytest.raises(NonFiniteLoss) as alone:
        run(given["nan"], tmp_path / "alone" / "nan")
    run(given["done"], tmp_path / "done")
    runs = {tmp_path / name: each for name, each in given.items()}
    outcomes = together(runs, {tmp_path / "pruned": Prunes()})
    assert isinstance(outcomes[tmp_path / "pruned"], Pruned)
    assert (tmp_path / "pruned/pruned.json").exists()
    assert len(read_jsonl(tmp_path / "pruned/metrics.jsonl")) == 2
    assert str(outcomes[tmp_path / "nan"]) == str(alone.value)
    assert read_json(tmp_path / "nan/failure.json")["type"] == "NonFiniteLoss"
    for name in ("a", "b", "done"):
        assert close(record(tmp_path / name), record(tmp_path / "alone" / name))
    run(given["pruned"], tmp_path / "alone" / "pruned")
    together({tmp_path / "pruned": given["pruned"]})
    assert close(record(tmp_path / "pruned"), record(tmp_path / "alone" / "pruned")), "a pruned run goes on where it was"


class Signals(NoTrial):
    """Somebody presses Ctrl-C after the first epoch."""

    def report(self, value: float, step: int) -> None:
        if step == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_chorus_that_was_stopped_goes_on_as_if_it_had_not_been(weights: Path, tmp_path: Path) -> None:
    runs = {tmp_path / f"among{i}": config(weights, tmp_path / "cache", *head) for i, head in enumerate(HEADS)}
    with pytest.raises(KeyboardInterrupt, match="stopped and saved at epoch 1, step 1"):
        together(runs, {tmp_path / "among1": Signals()})
    assert not list(tmp_path.glob("*/result.json"))
    assert {torch.load(folder / "last.pt", weights_only=True)["state"]["step_in_epoch"] for folder in runs} == {1}
    together(runs)
    for i, folder in enumerate(runs):
        run(config(weights, tmp_path / "cache", *HEADS[i]), tmp_path / f"alone{i}")
        assert close(record(folder), record(tmp_path / f"alone{i}"))


def test_a_chorus_that_was_stopped_after_the_last_step_of_an_epoch_goes_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {tmp_path / f"among{i}": config(weights, tmp_path / "cache", *head) for i, head in enumerate(HEADS)}
    with monkeypatch.context() as patched:
        patched.setattr(story, "listening", lambda: nullcontext(partial(next, iter([False] * 3 + [True] * 4), False)))
        with pytest.raises(KeyboardInterrupt, match="stopped and saved at epoch 0, step 4 of 4"):
            together(runs)
    together(runs)
    for i, (folder, each) in enumerate(runs.items()):
        run(each, tmp_path / f"alone{i}")
        assert close(record(folder), record(tmp_path / f"alone{i}"))


@pytest.mark.parametrize("fits", [2, 0])
def test_heads_that_do_not_fit_into_memory_at_once_are_trained_in_smaller_stacks(
    fits: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From their last checkpoints; where not even one fits, each by itself, in micro-batches of half the size."""
    truly, sizes = batched.train_one_epoch, []

    def train(members: Sequence[Parts], *given: Any) -> Any:
        sizes.append(len(members))
        if len(members) > fits and members[0].state.epoch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return truly(members, *given)

    monkeypatch.setattr("fourfold.chorus.train_one_epoch", train)
    words = ("trainer.checkpoint_seconds=0", "trainer.patience=null")
    runs = {tmp_path / f"among{i}": config(weights, tmp_path / "cache", *head, *words) for i, head in enumerate(HEADS)}
    outcomes = together(runs)
    assert sizes == ([4, 4, *[2] * 8] if fits else [4, 4, 2, 2, 1, 1, 1, 1])
    assert "out of memory with 4 heads at once: going on from the last checkpoint with fewer" in caplog.text
    for i, (folder, each) in enumerate(runs.items()):
        assert outcomes[folder]["memory_retries"] == (0 if fits else 1)
        run(each, tmp_path / f"alone{i}")
        assert close(record(folder), record(tmp_path / f"alone{i}"))


def test_what_breaks_a_stack_is_told_by_all_its_runs(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("fourfold.chorus.train_one_epoch", broken)
    runs = {tmp_path / f"among{i}": config(weights, tmp_path / "cache", *head) for i, head in enumerate(HEADS)}
    assert [str(outcome) for outcome in together(runs).values()] == ["the device is gone"] * len(runs)
    assert {read_json(folder / "failure.json")["type"] for folder in runs} == {"RuntimeError"}


def sweep(folder: Path, *words: str) -> subprocess.Popen:
    out = (folder.parent / f"{folder.name}.log").open("a")
    command = [sys.executable, "-m", "fourfold", "-m", f"paths.outputs={folder}", "study=s", *TINY, *words]
    return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)


def test_a_sweep_trains_its_heads_together_through_a_kill_with_the_results_of_one_by_one(weights: Path, tmp_path: Path) -> None:
    """And each run has its own log, its own trial, and its own end."""
    epochs = 40
    grid = [
        f"model.weights={weights}", f"trainer.epochs={epochs}", "optimizer=sgd", "optimizer.lr=0.01,0.1", "seed=0,1",
        "freeze=classifier_only,last_blocks", "search.preflight=off", "trainer.checkpoint_seconds=0.2",
    ]  # fmt: skip
    child = sweep(tmp_path / "out", *grid)
    deadline = time.monotonic() + PATIENCE
    folders = "s/digits-micro_resnet-classifier_only-*"
    while sum(path.exists() for path in (tmp_path / "out").glob(f"{folders}/last.pt")) < 4:
        assert time.monotonic() < deadline, (tmp_path / "out.log").read_text()[-3000:]
        assert child.poll() is None, (tmp_path / "out.log").read_text()[-3000:]
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    begun = sorted((tmp_path / "out").glob(folders))
    assert len(begun) == 4, "all heads had begun"
    assert sweep(tmp_path / "out", *grid).wait(timeout=PATIENCE) == 0, (tmp_path / "out.log").read_text()[-3000:]
    assert sweep(tmp_path / "one", *grid, "sweep.heads=1").wait(timeout=PATIENCE) == 0
    for folder in begun:
        assert close(record(folder), record(tmp_path / "one/s" / folder.name))
        assert "the frozen prefix ends" in (folder / "fourfold.log").read_text()
        assert (folder / "fourfold.log").read_text().count("the frozen prefix ends") <= 2, "each logs into its own file"
    assert len(list((tmp_path / "out").glob("s/*/result.json"))) == 8
    trials = [trial for trial in kept(tmp_path / "out/s") if trial.state == "done"]
    assert {trial.folder for trial in trials} == {path.parent.name for path in (tmp_path / "out").glob("s/*/result.json")}
    for trial in trials:
        result = read_json(tmp_path / "out/s" / str(trial.folder) / "result.json")
        assert trial.value == pytest.approx(result["metrics"]["val"]["acc"])


def test_a_checkpoint_holds_what_learns_and_all_of_them_name_one_file_with_the_rest(weights: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    together({study / str(i): config(weights, tmp_path / "cache", *HEADS[i]) for i in (0, 1)})
    start = weights_of.read(weights)
    for run_folder in (study / "0", study / "1"):
        for name in ("last.pt", "best.pt"):
            assert set(torch.load(run_folder / name, weights_only=True)["model"]) == {"head.weight", "head.bias"}
        whole = weights_of.read(run_folder / "best.pt")
        assert whole.keys() == start.keys()
        assert all(torch.equal(whole[name], start[name]) for name in start if not name.startswith("head."))
        assert json.loads((run_folder / "result.json").read_text())["weights"]["source"] == str(weights)
    (frozen,) = (study / "frozen").iterdir()
    again = run(config(study / "0/best.pt", tmp_path / "cache", "freeze=full", "trainer.epochs=1"), tmp_path / "again")
    assert again["metrics"]["test"]
    frozen.unlink()
    with pytest.raises(ConfigError, match=rf"{frozen.name} with the rest is missing: bring it back"):
        run(config(study / "1/best.pt", tmp_path / "cache", "freeze=full"), tmp_path / "none")


def test_a_checkpoint_that_is_uploaded_is_whole(weights: Path, tmp_path: Path) -> None:
    one = config(weights, tmp_path / "cache", "logger.wandb.log_model=true", *HEADS[0])
    together({tmp_path / "study/run": one})
    assert torch.load(tmp_path / "study/run/best.pt", weights_only=True)["model"].keys() == weights_of.read(weights).keys()
    assert not (tmp_path / "study/frozen").exists()
