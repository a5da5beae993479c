"""Whatever is combined: neither stored activations, nor runs beside it, nor interruptions change a number of a run."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fourfold import run as story
from fourfold.compose import compose
from fourfold.config import ConfigError, RunConfig
from fourfold.run import run
from test_chorus import together
from test_features import TINY

CHOICES = [  # of each line one, as likely as it stands there
    ["freeze=classifier_only", "freeze=last_blocks", "freeze=gradual", "freeze=lp_ft", "freeze=norm_only", "freeze=bias_only",
     "freeze=embedding_frozen", "freeze=two_rate", "freeze=stochnorm", "freeze=lora"],
    ["", "", "dataset.loader.sampler=weighted", "dataset.loader.sampler=subset dataset.loader.subset=[1,5,3,9,10,11,20]"],
    ["", "", "dataset.loader.drop_last=true"],
    ["trainer.batch_size=7", "trainer.batch_size=8 trainer.accumulate=3"],
    ["", "trainer.eval_batch_size=5"],
    ["", "", "trainer.limit_train_batches=2"],
    ["", "", "trainer.limit_eval_batches=1"],
    ["", "trainer.val_every=2"],
    ["", "trainer.patience=1"],
    ["", "trainer.ema_decay=0.9"],
    ["", "trainer.clip_norm=0.5"],
    ["", "trainer.loss.label_smoothing=0.1"],
    ["", "trainer.loss.class_weights=balanced"],
    ["transform=none", "transform=none", "transform=light"],
    ["optimizer=sgd", "optimizer=adamw", "optimizer=lbfgs"],
    ["scheduler=cosine", "scheduler=plateau", "scheduler=step"],
    ["", "", "", "", "regularizer=l2_sp", "regularizer=bss", "regularizer=delta", "regularizer=co_tuning"],
    ["", "", "", "", "adapt=adabn", "adapt=mmd"],
    ["", "", "", "debug=overfit"],
    ["", "trainer.channels_last=true"],
    ["trainer.checkpoint_seconds=0", "trainer.checkpoint_seconds=1000"],
]  # fmt: skip
OF_ALL = [  # that the heads of a sweep have in common
    ["", "", "dataset.loader.sampler=weighted", "dataset.loader.sampler=subset dataset.loader.subset=[1,5,3,9,10,11,20]"],
    ["", "", "dataset.loader.drop_last=true"],
    ["trainer.batch_size=7", "trainer.batch_size=16", "trainer.batch_size=8 trainer.accumulate=2"],
    ["", "trainer.eval_batch_size=5"],
    ["", "", "trainer.limit_train_batches=2"],
    ["", "", "trainer.limit_eval_batches=1"],
    ["", "trainer.val_every=2"],
    ["transform=none", "transform=none", "transform=none", "transform=light cache.views=2"],
    ["", "", "", "debug=overfit"],
    ["", "trainer.channels_last=true"],
    ["", "", "trainer.precision=bf16"],
    ["", "cache.dtype=bf16"],
    ["", "trainer.checkpoint_seconds=0", "trainer.checkpoint_seconds=1000"],
    ["trainer.monitor=auto", "trainer.monitor=val/loss"],
    ["", "dataset.split_seed=3"],
]
OF_EACH = [
    ["optimizer=sgd", "optimizer=sgd +optimizer.kwargs.momentum=0.5", "optimizer=adamw", "optimizer=lbfgs",
     "optimizer=adamw +optimizer.kwargs.betas=[0.8,0.9]", "optimizer.name=rmsprop ~optimizer.kwargs.fused"],
    ["optimizer.lr=0.3", "optimizer.lr=0.01", "optimizer.lr=0.001"],
    ["seed=0", "seed=1", "seed=2"],
    ["", "optimizer.weight_decay=0.1"],
    ["", "trainer.loss.label_smoothing=0.1"],
    ["", "trainer.loss.class_weights=balanced"],
    ["", "", "trainer.patience=1"],
    ["", "trainer.clip_norm=0.1"],
    ["scheduler=cosine", "scheduler=plateau", "scheduler=step", "scheduler=constant"],
    ["", "", "", "trainer.epochs=3"],
    ["", "", "", "trainer.ema_decay=0.9"],
    ["", "", "freeze_strategy.norm_stats=frozen"],
]  # fmt: skip
SET_UPS, SWEEPS = 8, 5  # for every day


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "start-0123456789ab"
    run(compose([*TINY, "freeze=from_scratch", "trainer.epochs=1"]), folder)
    return folder / "best.pt"


def set_ups(dice: random.Random, weights: Path, folder: Path) -> Iterator[dict[str, RunConfig]]:
    """Random ones that a configuration may hold, each without and with stored activations."""
    while True:
        words = [word for choices in CHOICES for word in dice.choice(choices).split()]
        more = [f"model.weights={weights}", f"paths.cache={folder / 'cache'}", "trainer.deterministic=true"]
        try:
            yield {each: compose([*TINY, *more, *words, f"cache.activations={each}"]) for each in ("off", "auto")}
        except ConfigError:
            continue


def sweeps(dice: random.Random, weights: Path, folder: Path) -> Iterator[dict[Path, RunConfig]]:
    """Random heads that may be told in step, mostly of one optimizer, by the folders of their runs."""
    while True:
        words = [word for choices in OF_ALL for word in dice.choice(choices).split()]
        more = ["freeze=classifier_only", f"model.weights={weights}", f"paths.cache={folder / 'cache'}", *words]
        heads = [[dice.choice(choices) for choices in OF_EACH] for _ in range(dice.randrange(2, 6))]
        if dice.random() < 0.7:
            heads = [[heads[0][0], *others] for _, *others in heads]
        try:
            yield {folder / f"{i}": compose([*TINY, *more, *" ".join(head).split()]) for i, head in enumerate(heads)}
        except ConfigError:
            continue


def numbers(folder: Path, result: dict[str, Any]) -> list[Any]:
    """All that a run has measured, with lists and mappings taken apart."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [*({**row, "seconds": 0} for row in rows), result["metrics"], result["best_epoch"], result.get("confusion")]
    return [*flat(told)]


def flat(told: Any) -> Iterator[Any]:
    if isinstance(told, dict | list):
        for each in told.values() if isinstance(told, dict) else told:
            yield from flat(each)
    else:
        yield told


def stopping(after: int | None) -> Callable[[], Any]:
    """As `interrupts.listening`, with a wish that comes after so many steps."""

    @contextmanager
    def listening() -> Iterator[Callable[[], bool]]:
        steps = itertools.count(1)
        yield lambda: after is not None and next(steps) >= after

    return listening


def seeds(few: int, all_of_them: int) -> Any:
    """Of so many the first few every day."""
    rest = (pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(few, all_of_them))
    return pytest.mark.parametrize("seed", [*range(few), *rest])


@seeds(SET_UPS, 200)
def test_a_random_set_up(seed: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    for config in set_ups(dice, weights, tmp_path):
        try:
            whole = numbers(tmp_path / "whole", run(config["off"], tmp_path / "whole"))
            break
        except ConfigError:  # too few images for a step, an optimizer that wants another strategy
            continue
    cached = numbers(tmp_path / "cached", run(config["auto"], tmp_path / "cached"))
    assert cached == pytest.approx(whole, rel=3e-6, abs=1e-8), config["auto"]
    for after in (dice.randrange(1, 12), dice.randrange(1, 12), None):
        monkeypatch.setattr(story, "listening", stopping(after))
        try:
            parts = numbers(tmp_path / "parts", run(config["auto"], tmp_path / "parts"))
        except KeyboardInterrupt:
            continue
    assert parts == cached, config["auto"]


@seeds(SWEEPS, 200)
def test_a_random_sweep_of_heads(seed: int, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    for k, runs in enumerate(sweeps(dice, weights, tmp_path / "together")):
        try:
            apart = {tmp_path / f"alone{k}" / place.name: each for place, each in runs.items()}
            alone = {place.name: numbers(place, run(each, place)) for place, each in apart.items()}
            break
        except ConfigError:  # too few images for a step
            continue
    parted = {tmp_path / "parted" / place.name: each for place, each in runs.items()}
    for after in (dice.randrange(1, 12), dice.randrange(1, 12), None):
        monkeypatch.setattr(story, "listening", stopping(after))
        with suppress(KeyboardInterrupt):
            parts = together(parted)
    for folder, result in (together(runs) | parts).items():
        assert numbers(folder, result) == pytest.approx(alone[folder.name], rel=1e-4, abs=1e-5), runs
