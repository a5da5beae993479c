"""The story of a run: nothing is lost, nothing is fooled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold import checkpoint, data, interrupts
from fourfold.compose import compose
from fourfold.config import RunConfig
from fourfold.loop import NonFiniteLoss
from fourfold.run import run
from fourfold.tracking.console import Display
from fourfold.trial import NoTrial, Pruned

TINY = [
    "dataset=glyph_digits", "model=micro_resnet", "freeze=full", "logger=none", "dataset.train_size=40", "dataset.val_size=30",
    "dataset.test_size=30", "trainer.batch_size=10", "trainer.device=cpu", "trainer.progress=false", "trainer.threads=1",
]  # fmt: skip
RANDOM = "model.weights=null"


def config(*overrides: str, epochs: int | None = 3) -> RunConfig:
    """A run from random weights, which the door would not let a frozen backbone have."""
    length = [] if epochs is None else [f"trainer.epochs={epochs}"]
    composed = compose([*TINY, *length, *overrides])
    composed.model.weights = None
    return composed


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


CLOCKS = ("seconds", "seconds_per_epoch", "peak_memory_bytes")


def timeless(value: Any) -> Any:
    """Without what a clock or a memory gauge wrote."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in CLOCKS}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def record(folder: Path) -> tuple[Any, ...]:
    """Everything that a run leaves, except what a clock wrote."""
    last, best = (torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return timeless(last), timeless(best), timeless(rows), timeless(json.loads((folder / "result.json").read_text()))


class Ends(NoTrial):
    """A search that ends a run after some epoch, as a kill would: between the checkpoint and the next epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def report(self, value: float, step: int) -> None:
        self.now = step

    def should_prune(self) -> bool:
        return self.now == self.epoch


# what makes a run hard to resume: moments, averages, augmentation, dropout, unfreezing, plateaus
HARD = {
    "augmented": ["transform=standard", "transform.hflip=true"],
    "mixup_ema": ["transform=mixup", "trainer.ema_decay=0.9"],
    "gradual": ["freeze=gradual"],
    "lp_ft": ["freeze=lp_ft"],
    "plateau_sgd": ["scheduler=plateau", "scheduler.patience=0", "optimizer=sgd"],
    "accumulate": ["trainer.accumulate=2", "dataset.loader.sampler=weighted", "trainer.val_every=2"],
}


@pytest.mark.parametrize("name", HARD)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = config(*HARD[name], epochs=4)
    run(hard, tmp_path / "straight")
    for epoch in (1,) if name == "accumulate" else (0, 1, 2):  # a search is asked after validations only
        with pytest.raises(Pruned):
            run(hard, tmp_path / "resumed", trial=Ends(epoch))
    steps = iter(range(10**6))
    monkeypatch.setattr(Display, "step", lambda *_: os.kill(os.getpid(), signal.SIGINT) if next(steps) == 1 else None)
    with pytest.raises(KeyboardInterrupt, match=r"stopped and saved at epoch \d, step 2 of 4"):
        run(hard, tmp_path / "resumed")
    run(hard, tmp_path / "resumed")
    for ours, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(ours, straight)


def test_a_best_epoch_that_waits_to_be_saved_is_kept_as_it_was(tmp_path: Path) -> None:
    words = ("optimizer=sgd", "optimizer.lr=0.05")
    run(config(*words, epochs=6), tmp_path / "often")
    result = run(config(*words, "trainer.checkpoint_seconds=1000", epochs=6), tmp_path / "seldom")
    assert 0 < result["best_epoch"] < 5, "else the best epoch would not have to wait"
    often, seldom = record(tmp_path / "often"), record(tmp_path / "seldom")
    assert same(often[:3], seldom[:3])


@pytest.mark.parametrize(("seconds", "told"), [("0", 6), ("1000", 1), ("null", 2)])
def test_a_checkpoint_is_written_once_it_is_worth_its_time(
    seconds: str, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default after the first epoch, when it is known what that costs: here more than all other epochs are worth."""
    monkeypatch.setattr(checkpoint, "CHEAPEST", 0.0)
    saved: list[Path] = []
    truly = checkpoint.save

    def slowly(folder: Path, *content: Any) -> None:
        saved.append(folder)
        truly(folder, *content)
        time.sleep(1 if seconds == "null" else 0)

    monkeypatch.setattr(checkpoint, "save", slowly)
    run(config(f"trainer.checkpoint_seconds={seconds}", epochs=6), tmp_path)
    assert len(saved) == told


def test_what_a_save_costs_says_when_the_next_one_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    interval = checkpoint.Interval(None, seconds=5.0)
    assert not interval.over(5.04)
    assert interval.over(5.06), "the least that is worth a save"
    with interval.saving(6.0):
        now[0] += 0.25
    now[0] += 1000.0  # of the other runs
    assert not interval.over(8.4)
    assert interval.over(8.5)


def test_kill_minus_nine_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    run(config(epochs=12), tmp_path / "straight")
    code = (
        "import sys; from pathlib import Path; from fourfold.compose import compose; from fourfold.run import run\n"
        "run(compose(sys.argv[2:]), Path(sys.argv[1]))"
    )
    for delay in (0.05, 0.2, 0.35):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed"), *TINY, RANDOM, "trainer.epochs=12"])
        deadline = time.monotonic() + 120
        before = len(list((tmp_path / "killed").glob("*.pt")))
        while len(list((tmp_path / "killed").glob("*.pt"))) <= before - 1 or not (tmp_path / "killed/metrics.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay)
        child.kill()
        child.wait()
    run(config(epochs=12), tmp_path / "killed")
    for ours, straight in zip(record(tmp_path / "killed"), record(tmp_path / "straight"), strict=True):
        assert same(ours, straight)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(config(), tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(config(), tmp_path) == json.loads(json.dumps(first))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_two_runs_of_one_config_give_the_same_numbers(tmp_path: Path) -> None:
    a = run(config("transform=standard"), tmp_path / "a")
    b = run(config("transform=standard"), tmp_path / "b")
    assert timeless(a) == timeless(b)
    c = run(config("transform=standard", "seed=1"), tmp_path / "c")
    assert c["metrics"]["train"]["loss"] != a["metrics"]["train"]["loss"]


def test_the_test_split_is_opened_once_after_everything_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    truly = data.SealedSplit.open

    def watched(split: data.SealedSplit) -> Any:
        opened.append((tmp_path / "last.pt").exists() and not (tmp_path / "result.json").exists())
        return truly(split)

    monkeypatch.setattr(data.SealedSplit, "open", watched)
    result = run(config(), tmp_path)
    assert opened == [True]
    assert result["test_opened"] == 1
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["state"]["epoch"] == 3


def test_best_is_chosen_on_validation_and_is_what_is_tested(tmp_path: Path) -> None:
    result = run(config("optimizer.lr=0.02", epochs=4), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [row["val/acc"] for row in rows]
    assert result["best_epoch"] == scores.index(max(scores))
    assert result["metrics"]["val"]["acc"] == max(scores)
    assert result["metrics"]["val"]["loss"] == rows[result["best_epoch"]]["val/loss"]


def test_early_stopping_waits_for_its_patience(tmp_path: Path) -> None:
    result = run(config("trainer.patience=2", "optimizer.lr=1e-9", epochs=30), tmp_path)
    assert result["epochs"] == result["best_epoch"] + 3 < 30


def test_the_result_proves_the_freezing(tmp_path: Path) -> None:
    frozen = config("freeze=classifier_only", "model.source=torchvision", "model.name=resnet18", "model.image_size=32")
    result = run(frozen, tmp_path)
    assert [proof["before"] for proof in result["proof"]] == [proof["after"] for proof in result["proof"]]
    assert result["proof"][0]["tensors"] == 122 - 2
    assert result["params"]["trainable"] == 512 * 10 + 10


def test_a_frozen_weight_that_moves_fails_the_run_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold import assembly, freeze

    def forgetful(net: torch.nn.Module, phase: freeze.Phase, norm_stats: str) -> None:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in phase.trainable)  # but norm statistics are forgotten

    monkeypatch.setattr(assembly.freeze, "apply", forgetful)
    monkeypatch.setattr(
        freeze,
        "frozen",
        lambda net: {name: each for name, each in net.state_dict().items() if not name.startswith(("fc.", "head."))},
    )
    frozen = config("freeze=classifier_only")
    with pytest.raises(freeze.FrozenMoved):
        run(frozen, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert json.loads((tmp_path / "failure.json").read_text())["type"] == "FrozenMoved"


def test_a_loss_that_is_not_finite_ends_the_run_with_epoch_step_and_rate(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"the loss is (nan|inf) at epoch \d, step \d+, with a learning rate of"):
        run(config("optimizer=sgd", "optimizer.lr=1e30", "scheduler.warmup_epochs=0"), tmp_path)
    assert "traceback" in json.loads((tmp_path / "failure.json").read_text())


def test_one_batch_is_learnt_by_heart(tmp_path: Path) -> None:
    result = run(config("debug=overfit", epochs=None), tmp_path)
    assert result["metrics"]["train"]["loss"] < 0.01
    assert result["metrics"]["val"]["acc"] == 1.0


def test_smoke_and_profile_run(tmp_path: Path) -> None:
    smoke = run(config("debug=smoke", epochs=None), tmp_path / "smoke")
    assert torch.load(tmp_path / "smoke/last.pt", weights_only=True)["state"]["step"] == 2
    assert smoke["epochs"] == 1
    run(config("debug=profile"), tmp_path / "profile")
    assert json.loads((tmp_path / "profile/profile.json").read_text())["traceEvents"]


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    frozen = ["freeze_strategy.norm_stats=frozen", "optimizer=sgd"]  # batch statistics would depend on the micro-batch
    whole = run(config(*frozen), tmp_path / "whole")
    split = run(config(*frozen, "trainer.accumulate=5"), tmp_path / "split")
    assert split["metrics"]["train"]["loss"] == pytest.approx(whole["metrics"]["train"]["loss"], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_learns_the_same_within_its_rounding(precision: str, tmp_path: Path) -> None:
    full = run(config(epochs=1), tmp_path / "fp32")
    low = run(config(f"trainer.precision={precision}", epochs=1), tmp_path / precision)
    assert low["metrics"]["train"]["loss"] == pytest.approx(full["metrics"]["train"]["loss"], rel=0.05)
    assert low["metrics"]["train"]["loss"] != full["metrics"]["train"]["loss"]


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """gloo on the CPU; batch statistics are frozen, since each process would have its own."""
    overrides = [
        *TINY,
        RANDOM,
        "trainer.epochs=3",
        "freeze_strategy.norm_stats=frozen",
        "trainer.clip_norm=1.0",
        f"paths.outputs={tmp_path}/two",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fourfold", *overrides],
        check=True,
        env=environment,
        timeout=180,
    )
    (folder,) = (tmp_path / "two/runs").iterdir()
    two = json.loads((folder / "result.json").read_text())
    one = run(compose(overrides), tmp_path / "one")
    assert two["world"] == 2
    assert two["metrics"]["train"]["loss"] == pytest.approx(one["metrics"]["train"]["loss"], rel=1e-5)
    for split in ("val", "test"):
        assert two["metrics"][split] == pytest.approx(one["metrics"][split], rel=1e-4)
    assert two["confusion"] == one["confusion"]


def test_regression_and_multilabel_run(tmp_path: Path) -> None:
    from PIL import Image

    lines = {"value": ["path,label"], "cents": ["path,label"], "tags": ["path,label"]}
    for i in range(24):
        Image.new("RGB", (8, 8), (i * 10, 0, 255 - i * 10)).save(tmp_path / f"{i}.png")
        lines["value"].append(f"{i}.png,{i / 24}")
        lines["cents"].append(f"{i}.png,{300_000 + 100_000 * i / 24}")
        lines["tags"].append(f"{i}.png,{'red' if i > 12 else 'blue'}{'|many' if i % 2 else ''}")
    for name, rows in lines.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    own = ["dataset=csv", f"dataset.root={tmp_path}", "dataset.train_size=null", "dataset.val_size=6", "dataset.test_size=6"]
    regression = run(config(*own, "dataset.kwargs.file=value.csv", "dataset.task=regression"), tmp_path / "r")
    assert set(regression["metrics"]["test"]) == {"loss", "mae", "rmse", "r2"}
    assert regression["copies"] == {"val": 0, "test": 0}
    cents = run(config(*own, "dataset.kwargs.file=cents.csv", "dataset.task=regression"), tmp_path / "c")
    assert cents["target"]["std"] == pytest.approx(100_000 * regression["target"]["std"], rel=1e-5)
    assert cents["target"]["mean"] == pytest.approx(300_000 + 100_000 * regression["target"]["mean"], rel=1e-5)
    for metric, unit in {"loss": 1, "r2": 1, "mae": 100_000, "rmse": 100_000}.items():  # of the unit nothing depends but these
        assert cents["metrics"]["test"][metric] == pytest.approx(unit * regression["metrics"]["test"][metric], rel=1e-2)
    tags = run(config(*own, "dataset.kwargs.file=tags.csv", "dataset.task=multilabel"), tmp_path / "m")
    assert set(tags["metrics"]["test"]) == {"loss", "acc", "macro_f1", "mean_ap"}
    assert sorted(tags["classes"]) == ["blue", "many", "red"]


def test_a_second_interrupt_ends_the_process_as_ever() -> None:
    with interrupts.listening() as wish:
        os.kill(os.getpid(), signal.SIGINT)
        assert wish()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.listening() as wish:
            signal.raise_signal(signal.SIGINT)
            assert not wish()
    finally:
        signal.signal(signal.SIGINT, before)
