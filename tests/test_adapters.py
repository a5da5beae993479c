"""A run with adapters: base weights are proven frozen, nothing is lost in a resume, and other runs can start from it."""

from pathlib import Path

import pytest
import torch

from fourfold import models
from fourfold.config import ConfigError
from fourfold.models.adapters import layers
from fourfold.run import run
from fourfold.trial import Pruned
from test_run import Ends, config, record, same

pytest.importorskip("peft", reason="needs the extra `adapters`")


def test_only_adapters_and_head_learn_and_it_is_proven(tmp_path: Path) -> None:
    result = run(config("freeze=lora", "optimizer.lr=1e-2"), tmp_path)
    params = result["params"]
    plain = models.create(config().model, 10)
    total = sum(parameter.numel() for parameter in plain.net.parameters())
    shapes = [plain.net.get_submodule(name).weight.shape for name in layers(plain)]  # type: ignore[union-attr]
    adapters = sum(8 * (shape[1:].numel() + shape[0]) for shape in shapes)  # A [8, I, k, k] and B [O, 8, 1, 1]
    assert params == {"total": total + adapters, "trainable": adapters + 650, "head": 650}
    assert result["proof"][0]["before"] == result["proof"][0]["after"]
    assert result["proof"][0]["tensors"] == len(plain.net.state_dict()) - 2
    assert result["frontier"] is None  # the first layer has an adapter: there is no frozen prefix


@pytest.mark.parametrize("overrides", [["freeze=lora", "freeze_strategy.adapter.dropout=0.3"], ["freeze=ia3"]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(overrides: list[str], tmp_path: Path) -> None:
    ours = config(*overrides, "trainer.ema_decay=0.9")
    run(ours, tmp_path / "straight")
    with pytest.raises(Pruned):
        run(ours, tmp_path / "resumed", trial=Ends(1))
    run(ours, tmp_path / "resumed")
    for resumed, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(resumed, straight)


def test_another_run_starts_from_the_merged_weights(tmp_path: Path) -> None:
    first = config("freeze=lora", "optimizer.lr=1e-2")
    run(first, tmp_path / "first")
    second = config("freeze=classifier_only", "freeze_strategy.norm_stats=frozen")
    second.model.weights = str(tmp_path / "first" / "merged.pt")
    result = run(second, tmp_path / "second")
    assert result["weights"]["missing"] == ()
    merged, there = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("first/merged.pt", "second/best.pt"))
    assert merged.keys() == there.keys()
    assert all(torch.equal(merged[name], there[name]) for name in merged if not name.startswith("head."))
    second.model.weights = str(tmp_path / "first" / "best.pt")
    with pytest.raises(ConfigError, match=r"holds adapters beside its weights: give merged\.pt"):
        run(second, tmp_path / "third")
