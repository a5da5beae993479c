"""A dry run knows what the run will be, and nobody can tell that it has been."""

import random
import time
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest
import torch

from fourfold import dry_run as rehearsal
from fourfold import models
from fourfold.activations import Store
from fourfold.compose import compose
from fourfold.config import ConfigError, RunConfig
from fourfold.dry_run import dry_run
from fourfold.estimate import training_seconds, validations
from fourfold.identity import parts_id
from fourfold.run import run
from fourfold.stock import Stock

TINY = [
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=3", "dataset.val_size=10", "dataset.test_size=15",
    "model=micro_resnet", "trainer.batch_size=8", "trainer.eval_batch_size=4", "trainer.epochs=3",
    "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false", "logger=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "backbone.pt"
    torch.save(models.create(config("freeze=from_scratch").model, 10, pretrained=False).net.state_dict(), file)
    return f"model.weights={file}"


def config(*overrides: str) -> RunConfig:
    return compose([*TINY, *overrides])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


STRATEGIES = ["classifier_only", "full", "lp_ft", "gradual", "last_blocks"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_size_is_that_of_the_result(strategy: str, weights: str, tmp_path: Path) -> None:
    asked = config(weights, f"freeze={strategy}", *(["freeze.unfreeze_every=1"] if strategy == "gradual" else []))
    found = dry_run(asked)
    result = run(asked, tmp_path / "run")
    assert (found.trainable, found.total) == (result["params"]["trainable"], result["params"]["total"])
    images = result["images"]
    assert found.steps == -(-images["train"] // 8) == 4
    assert found.eval_batches == -(-images["val"] // 4) == 3
    assert found.epochs == result["epochs"] == 3


def test_the_time_is_that_of_all_steps_and_all_evaluations() -> None:
    found = dry_run(config("freeze=from_scratch"))
    assert min(found.first_step_seconds, found.step_seconds, found.eval_seconds) > 0
    # 30 images are 3.75 steps of 8; 3 validations of 10 images and a test of 15 are 11.25 batches of 4
    assert found.seconds == pytest.approx(3 * 3.75 * found.step_seconds + 11.25 * found.eval_seconds)


def test_training_seconds_are_those_of_each_phase() -> None:
    assert training_seconds([0], 10, 2.0, 2.0) == 20
    assert training_seconds([0, 3], 10, 2.0, 5.0) == 3 * 2 + 7 * 5
    assert training_seconds([0, 2, 4], 10, 1.0, 3.0) == 2 + 8 * 3
    assert [validations(10, every) for every in (1, 3, 10, 20)] == [10, 4, 1, 1]


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        ("freeze=classifier_only", True),
        ("freeze=lp_ft", True),
        ("freeze=last_blocks transform=standard cache.views=2", True),
        ("freeze=last_blocks transform=standard", False),
        ("freeze=classifier_only cache.activations=off", False),
        ("freeze=classifier_only dataset.loader.sampler=weighted", False),
        ("freeze=classifier_only optimizer=lbfgs", False),
        ("freeze=classifier_only debug=overfit", False),
        ("freeze=full", False),
    ],
)
def test_what_is_stored_is_paid_once(words: str, stored: bool, weights: str) -> None:
    found = dry_run(config(weights, *words.split()), stored=True)
    assert (found.shared_seconds > 0) == stored
    assert found.seconds > 0
    assert dry_run(config(weights, *words.split())).shared_seconds == 0


def test_no_epoch_on_stored_activations_costs_what_the_network_does(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through = models.micro_resnet.MicroResNet.forward
    slow = lambda net, images: time.sleep(0.02 * len(images)) or through(net, images)  # noqa: E731
    monkeypatch.setattr(models.micro_resnet.MicroResNet, "forward", slow)
    asked = config(weights, "freeze=classifier_only")
    found = dry_run(asked, stored=True)
    assert found.shared_seconds >= 0.02 * (30 + 10 + 15), "of each part once"
    assert found.seconds < 0.5 * dry_run(asked).seconds


def test_a_dry_run_leaves_no_trace(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draws = []
    for tried in (False, True):
        random.seed(7)
        numpy.random.seed(7)  # noqa: NPY002
        torch.manual_seed(7)
        if tried:
            asked = config(weights, "freeze=lp_ft", "transform=mixup", "trainer.deterministic=true", "trainer.threads=2")
            dry_run(asked, stored=True)
        draws.append((random.random(), numpy.random.rand(), torch.rand(3).tolist()))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert tree(tmp_path) == []


def test_the_run_after_it_is_the_run_without_it(tmp_path: Path) -> None:
    asked = config("freeze=from_scratch", "trainer.epochs=1")
    alone = run(asked, tmp_path / "alone")
    dry_run(asked)
    after = run(asked, tmp_path / "after")
    assert after["metrics"] == alone["metrics"]


def test_heads_that_take_over_its_network_are_those_without_it(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has stored is not computed again."""
    words = [weights, "freeze=classifier_only", "trainer.epochs=1"]
    alone = run(config(*words, f"paths.cache={tmp_path}/other"), tmp_path / "alone")
    asked, stock = config(*words, f"paths.cache={tmp_path}/cache"), Stock()
    computed: list[int] = []
    fill = Store.fill
    monkeypatch.setattr(Store, "fill", lambda *given, **named: computed.append(fill(*given, **named)) or computed[-1])
    dry_run(asked, shared=stock)
    assert computed == [8, 16], "validation, and two steps"
    for name in ("first", "second"):
        after = run(asked, tmp_path / name, shared=stock)
        assert after["metrics"]["val"] == alone["metrics"]["val"]
        assert after["metrics"]["test"] == pytest.approx(alone["metrics"]["test"], rel=1e-5)  # alone the whole network reads it
        assert after["proof"] == alone["proof"]
    assert computed == [8, 16, 2, 14, 15], "the rest, the test images, and nothing for the second run"


def test_what_a_probe_has_yet_to_settle_is_not_stored_for_others(weights: str, tmp_path: Path) -> None:
    dry_run(
        config(weights, "freeze=classifier_only", "trainer.precision=auto", f"paths.cache={tmp_path}/cache"), shared=Stock()
    )
    assert tree(tmp_path) == []


def test_kernels_are_tried_for_who_asks_for_the_pace(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    train = rehearsal.train_one_epoch
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    look = lambda *given, **named: seen.append(torch.backends.cudnn.benchmark) or train(*given, **named)  # noqa: E731
    monkeypatch.setattr(rehearsal, "train_one_epoch", look)
    dry_run(config(weights, "freeze=full"))
    dry_run(config(weights, "freeze=full"), stored=True)
    assert seen == [False, True]


def test_an_epoch_of_one_step_is_timed_over_several() -> None:
    found = dry_run(config("freeze=from_scratch", "trainer.batch_size=64"), steps=3)
    assert found.steps == 1
    assert found.step_seconds > 0


def test_what_would_fail_in_the_first_steps_fails() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.shots=1000"):
        dry_run(config("freeze=from_scratch", "dataset.shots=1000"))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("seed=1", True), ("optimizer.lr=0.5", True), ("scheduler=constant", True), ("quadrant.name=mine", True),
        ("trainer.batch_size=4", False), ("freeze=full", False), ("dataset.shots=2", False), ("trainer.precision=bf16", False),
        ("model.image_size=64", False), ("trainer.epochs=2", False), ("optimizer=sgd", False),
    ],
)  # fmt: skip
def test_runs_of_the_same_parts_are_tried_once(override: str, same: bool) -> None:
    assert (parts_id(asdict(config())) == parts_id(asdict(config(override)))) == same
