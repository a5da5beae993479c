"""What runs of one process share, and what a run among others may not notice."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fourfold import features, freeze
from fourfold.activations import Held, Store
from fourfold.assembly import assemble
from fourfold.compose import compose
from fourfold.data.sources import open_source
from fourfold.files import read_json, read_jsonl
from fourfold.models import TransferModel, frontier
from fourfold.ranks import Ranks
from fourfold.run import run
from fourfold.seeding import seed_everything
from fourfold.stock import Stock

SMALL = [
    "dataset=digits", "dataset.shots=2", "dataset.val_size=20", "dataset.test_size=20", "model=micro_resnet",
    "transform=light", "trainer.epochs=2", "trainer.batch_size=10", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "logger=none",
]  # fmt: skip
ALONE = """
import sys
from pathlib import Path
from fourfold.compose import compose
from fourfold.run import run
run(compose(sys.argv[2:]), Path(sys.argv[1]))
"""


def found(folder: Path) -> tuple[list[dict[str, float]], Any, dict[str, torch.Tensor]]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "metrics.jsonl")]
    result = read_json(folder / "result.json")
    return rows, (result["metrics"], result["confusion"]), torch.load(folder / "best.pt", weights_only=True)["model"]


def test_a_run_after_others_is_bit_for_bit_the_run_alone_in_a_fresh_process(tmp_path: Path) -> None:
    run(compose([*SMALL, "freeze=from_scratch", "seed=3"]), tmp_path / "weights")
    weights = f"model.weights={tmp_path / 'weights/best.pt'}"
    mine = [*SMALL, weights, "freeze=full", "seed=1"]
    alone = [sys.executable, "-c", ALONE, str(tmp_path / "alone"), *mine]
    subprocess.run(alone, check=True, timeout=240)
    run(compose([*SMALL, weights, "freeze=classifier_only", "seed=0"]), tmp_path / "before")
    run(compose(mine), tmp_path / "after")
    rows, metrics, state = found(tmp_path / "after")
    expected_rows, expected_metrics, expected_state = found(tmp_path / "alone")
    assert rows == expected_rows
    assert metrics == expected_metrics
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


def test_the_images_of_a_dataset_are_made_once(tmp_path: Path) -> None:
    first, second = (compose([*SMALL, f"seed={seed}"]).dataset for seed in (0, 1))
    assert open_source(first, 0).train.images is open_source(second, 1).train.images


def counting(calls: Counter[str], name: str, call: Any) -> Any:
    def counted(*given: Any) -> Any:
        calls[name] += 1
        return call(*given)

    return counted


@pytest.mark.parametrize("strategy", ["last_blocks", "gradual"])
def test_runs_behind_the_same_frozen_blocks_learn_of_each_other_and_stay_bit_for_bit_the_run_alone(
    strategy: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*SMALL, start, "model=resnet18", "model.image_size=32", "transform=none", f"freeze={strategy}", "trainer.epochs=3"]
    mine = compose([*small, f"paths.cache={tmp_path}/cache", "optimizer.lr=0.01"])
    run(replace(mine, paths=replace(mine.paths, cache=f"{tmp_path}/other")), tmp_path / "alone")
    calls: Counter[str] = Counter()
    for owner, name in ((frontier, "split"), (Store, "_check"), (features, "_check")):
        monkeypatch.setattr(owner, name, counting(calls, f"{owner.__name__}.{name}", getattr(owner, name)))
    stock, stages = Stock(), []
    for i, rate in enumerate((0.1, 0.01)):
        config = compose([*small, f"paths.cache={tmp_path}/cache", f"optimizer.lr={rate}"])
        run(config, tmp_path / f"run{i}", shared=stock)
        stages.append(calls.copy())
        calls.clear()
    first, second = stages
    assert first["fourfold.models.frontier.split"] >= 1
    assert second == {"fourfold.features._check": first["fourfold.features._check"]}, (
        "it holds its own network against the rows"
    )
    assert all(a == b for a, b in zip(found(tmp_path / "run1")[:2], found(tmp_path / "alone")[:2], strict=True))
    ours, alone = found(tmp_path / "run1")[2], found(tmp_path / "alone")[2]
    assert all(torch.equal(ours[name], alone[name]) for name in alone)


def test_a_cut_is_looked_for_again_where_a_strategy_sets_other_modes(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*SMALL, start, "model=resnet18", "model.image_size=32", "transform=none", "freeze=last_blocks", "trainer.epochs=1"]
    calls: Counter[str] = Counter()
    monkeypatch.setattr(frontier, "split", counting(calls, "split", frontier.split))
    stock = Stock()
    for i, stats in enumerate(("frozen", "follow", "frozen")):
        config = compose([*small, f"paths.cache={tmp_path}/cache", f"freeze_strategy.norm_stats={stats}"])
        run(config, tmp_path / f"run{i}", shared=stock)
    assert calls["split"] == 2


def test_memory_is_held_for_the_rows_of_the_present_prefix_alone() -> None:
    known = features.Known()
    others = known.of_others()
    others.turn_to("one")
    others.stores["rows"], others.near["rows"] = Held(()), "on the device"  # type: ignore[assignment]
    known.of_others().turn_to("one")
    assert known.stores.keys() == known.near.keys() == {"rows"}
    known.turn_to(features.HEADS)
    assert not known.stores
    assert not known.near
    assert known.answered is not others.answered


def lent(config: Any, stock: Stock, seed: int = 0) -> Any:
    seed_everything(seed)
    return assemble(replace(config, seed=seed), Path("no checkpoint"), Ranks(0, 1, torch.device("cpu")), stock)


@pytest.fixture
def start(tmp_path: Path) -> str:
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18-0123abcd.pt")
    return f"model.weights={tmp_path}/resnet18-0123abcd.pt"


def test_runs_of_heads_share_the_modules_that_stay_as_they_are(start: str) -> None:
    config = compose([*SMALL, start, "model=resnet18", "model.image_size=32", "freeze=classifier_only"])
    stock = Stock()
    first, second, third, other = (lent(config, stock, seed).net for seed in (0, 0, 0, 1))
    assert first.layer1 is not second.layer1, "nobody knew yet what stays"
    assert second.layer1 is third.layer1 is not other.layer1
    assert second.layer1[0].conv1 is third.layer1[0].conv1
    assert second.fc is not third.fc
    assert second.fc.weight.data_ptr() != third.fc.weight.data_ptr()
    assert torch.equal(second.fc.weight, third.fc.weight)
    assert not torch.equal(second.fc.weight, other.fc.weight)
    third.fc.train()
    third.train()
    assert not any(module.training for name, module in second.named_modules() if name.startswith("layer"))


def test_who_listens_inside_its_network_has_modules_of_its_own(start: str) -> None:
    words = [*SMALL, start, "model=resnet18", "model.image_size=32", "freeze=classifier_only"]
    watched = ["logger=wandb", "logger.wandb.mode=offline", "logger.wandb.watch=true"]
    stock = Stock()
    for _ in range(2):
        lent(compose(words), stock)
    plain, listening = lent(compose(words), stock).net, lent(compose([*words, *watched]), stock).net
    assert plain.layer1 is not listening.layer1
    assert plain.conv1.weight is listening.conv1.weight


class Statistics(nn.Module):
    """A network in which something moves though only its head learns, and one that is not of a known library."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4), nn.ReLU())
        self.mine = Mine()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.flat(self.pool(self.mine(self.first(images)))))


class Mine(nn.Identity):
    pass


def test_what_moves_or_is_not_known_is_not_shared() -> None:
    net = Statistics()
    model = TransferModel(net, ("head.1",), (), None, None)  # type: ignore[arg-type]
    freeze.apply(net, freeze.Phase(0, frozenset({"head.1.weight", "head.1.bias"})), "follow")
    config = compose([*SMALL, "freeze=classifier_only"])
    stock = Stock()
    before = net.head[0].running_mean
    stock.own(config, model, freeze.frozen(net))
    assert net.head[0].running_mean is not before
    assert set(*stock._still.values()) == {"first", "pool", "flat"}
