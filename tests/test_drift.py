"""How far training moved a network: exact where nothing or a known amount moved, and against the biased textbook formula."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourfold import drift
from fourfold.assembly import assemble
from fourfold.models import TransferModel
from fourfold.models.cut import Suffix
from fourfold.ranks import Ranks
from fourfold.run import run
from test_run import config


def kernel(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(dim=0)
    return centred @ centred.T


def test_cka_of_equal_rotated_and_scaled_features_is_one() -> None:
    features = torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert drift.cka(kernel(features), kernel(3 * features @ turn + 5)) == pytest.approx(1.0, abs=1e-12)


def test_cka_of_unrelated_features_is_about_zero_though_they_have_many_more_dimensions_than_images() -> None:
    draws = torch.Generator().manual_seed(0)
    values = [
        drift.cka(*(kernel(torch.randn(64, 2000, dtype=torch.float64, generator=draws)) for _ in range(2))) for _ in range(20)
    ]
    assert np.mean([value or 0.0 for value in values]) == pytest.approx(0.0, abs=0.02)


def test_cka_approaches_the_definition_as_images_grow() -> None:
    """Kornblith's eq. 3 with the plain (biased) HSIC, from the features themselves."""
    draws = torch.Generator().manual_seed(0)
    first = torch.randn(3000, 5, dtype=torch.float64, generator=draws)
    second = first @ torch.randn(5, 7, dtype=torch.float64, generator=draws)
    second += 2 * torch.randn(3000, 7, dtype=torch.float64, generator=draws)
    x, y = first - first.mean(0), second - second.mean(0)
    norm = torch.linalg.matrix_norm
    plain = float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)))
    assert drift.cka(kernel(first), kernel(second)) == pytest.approx(plain, abs=0.005)


def test_constant_features_have_no_cka() -> None:
    assert drift.cka(torch.zeros(10, 10), kernel(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)))) is None


def test_a_run_records_what_moved_and_only_that(tmp_path: Path) -> None:
    result = run(config("freeze=last_blocks", "freeze_strategy.blocks=1", "dataset.val_size=60"), tmp_path)
    *before, last, head = result["drift"]
    assert [change["weights"] for change in before] == [0.0] * len(before)
    assert [change["cka"] for change in before] == pytest.approx([1.0] * len(before), abs=1e-6)
    assert 0.0 < last["weights"] < 10.0
    assert last["cka"] < 1.0
    assert head["block"] == "head"
    assert head["weights"] > 0.0


def test_a_frozen_backbone_is_not_run_to_know_that_it_gives_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_similarities", lambda *_: pytest.fail("the backbone was run"))
    result = run(config("freeze=classifier_only"), tmp_path)
    assert {change["cka"] for change in result["drift"][:-1]} == {1.0}
    assert {change["weights"] for change in result["drift"][:-1]} == {0.0}


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        (("freeze=last_blocks", "freeze_strategy.blocks=1"), True),
        (("freeze=last_blocks", "freeze_strategy.blocks=1", "transform=light"), True),  # the images to validate are stored
        (("freeze=gradual", "trainer.epochs=3"), None),  # as far as something is frozen in the last epoch
        (("freeze=norm_only",), None),
        (("freeze=full",), False),
    ],
    ids=["last_blocks", "augmented", "gradual", "norm_only", "full"],
)
def test_what_lies_behind_a_prefix_is_asked_alone_and_tells_the_same(
    words: tuple[str, ...], cut: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    kernels = drift._kernels

    def noted(net: nn.Module, blocks: list[str], sample: drift.Sample, kit: Any) -> Any:
        asked.append(isinstance(sample.net, Suffix))
        return kernels(net, blocks, sample, kit)

    monkeypatch.setattr(drift, "_kernels", noted)
    more = (*words, "dataset.val_size=60", f"paths.cache={tmp_path}/cache")
    stored = run(config(*more), tmp_path / "stored")["drift"]
    assert cut is None or asked == [cut] * 2
    asked.clear()
    whole = run(config(*more, "cache.activations=off"), tmp_path / "whole")["drift"]
    assert not any(asked)
    assert [each["block"] for each in stored] == [each["block"] for each in whole]
    assert [each["weights"] for each in stored] == [each["weights"] for each in whole]
    for ours, theirs in zip(stored[:-1], whole[:-1], strict=True):
        assert ours["cka"] == pytest.approx(theirs["cka"], abs=1e-6)


def test_measuring_leaves_the_network_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    measure = drift.measure

    def watched(model: TransferModel, *more: Any) -> list[drift.Change]:
        before = {name: value.clone() for name, value in model.net.state_dict().items()}
        changes = measure(model, *more)
        kept.append(all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items()))
        return changes

    monkeypatch.setattr(drift, "measure", watched)
    run(config("freeze=full"), tmp_path)
    assert kept == [True]


def test_features_are_compared_in_full_precision_whatever_the_network_computes_in(tmp_path: Path) -> None:
    """Also those that oneDNN cannot multiply in bf16: 24 images, 65,536 numbers each."""
    net = nn.Sequential(nn.Conv2d(3, 64, 1))
    bf16 = assemble(config("trainer.precision=bf16"), tmp_path, Ranks(0, 1, torch.device("cpu"))).kit
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sample = drift.Sample(net, (images,))
    half = drift._kernels(net, ["0"], sample, bf16)["0"]
    full = drift._kernels(net, ["0"], sample, replace(bf16, autocast=None))["0"]
    assert half.dtype == torch.float32
    assert drift.cka(half, full) == pytest.approx(1.0, abs=1e-3)


def test_the_relative_change_is_that_of_the_norms() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    start = drift.snapshot(net, frozenset({"0.weight", "1.weight"}))
    with torch.no_grad():
        net[0].weight.mul_(1.25)
    assert drift._relative(["0.weight"], net.state_dict(), start) == pytest.approx(0.25)
    assert drift._relative(["1.weight"], net.state_dict(), start) == 0.0
