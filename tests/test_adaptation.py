"""Distances between domains against their definitions, and runs that learn from images without labels."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fourfold import adaptation, data, models
from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.data.sources import open_source
from fourfold.run import run
from fourfold.stock import Stock
from fourfold.trial import Pruned
from test_run import Ends, config, record, same

G = torch.Generator().manual_seed(0)
FIRST, SECOND = torch.randn(7, 5, generator=G), 0.5 + 2 * torch.randn(9, 5, generator=G)


def test_coral_is_the_distance_of_two_covariances() -> None:
    a, b = (np.cov(features.numpy().astype(np.float64), rowvar=False) for features in (FIRST, SECOND))
    assert adaptation.coral(FIRST, SECOND).item() == pytest.approx(((a - b) ** 2).sum() / (4 * 25), rel=1e-5)
    assert adaptation.coral(FIRST, FIRST.flip(0) + 3).item() == pytest.approx(0, abs=1e-10)  # means are not compared


def test_mmd_is_its_definition_written_as_loops() -> None:
    both = [*FIRST.double(), *SECOND.double()]
    scale = sum(float(((x - y) ** 2).sum()) for x in both for y in both) / len(both) ** 2

    def mean(xs: torch.Tensor, ys: torch.Tensor) -> float:
        values = [
            sum(math.exp(-float(((x - y) ** 2).sum()) / (b * scale)) for b in (0.25, 0.5, 1, 2, 4)) / 5
            for x in xs.double()
            for y in ys.double()
        ]
        return sum(values) / len(values)

    expected = mean(FIRST, FIRST) + mean(SECOND, SECOND) - 2 * mean(FIRST, SECOND)
    assert adaptation.mmd(FIRST, SECOND).item() == pytest.approx(expected, rel=1e-4)
    assert adaptation.mmd(FIRST, FIRST).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", [adaptation.coral, adaptation.mmd])
def test_following_the_gradient_brings_two_domains_together(distance: Any) -> None:
    moving = SECOND.clone().requires_grad_()
    optimizer = torch.optim.Adam([moving], lr=0.05)
    before = distance(FIRST, moving).item()
    for _ in range(100):
        optimizer.zero_grad()
        distance(FIRST, moving).backward()
        optimizer.step()
    assert distance(FIRST, moving).item() < 0.2 * before


def test_dann_trains_its_classifier_forwards_and_the_features_backwards() -> None:
    torch.manual_seed(0)
    classifier = adaptation.DomainClassifier(5)
    classifier.seen.fill_(0.25)
    first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    found = adaptation.dann(classifier, 0.6, images=70)(first, second)
    found.backward()
    ours = [parameter.grad.clone() for parameter in classifier.parameters() if parameter.grad is not None]

    classifier.zero_grad()
    plain = [FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()]
    p = torch.sigmoid(torch.cat([classifier(features) for features in plain]))
    expected = -(torch.log(1 - p[:7]).sum() + torch.log(p[7:]).sum()) / 16
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    factor = 0.6 * (2 / (1 + math.exp(-2.5)) - 1)  # of p = 1/4, eq. 14
    for a, b in zip((first, second), plain, strict=True):
        assert b.grad is not None
        torch.testing.assert_close(a.grad, -factor * b.grad)
    assert len(ours) == 4
    for a, parameter in zip(ours, classifier.parameters(), strict=True):
        torch.testing.assert_close(a, parameter.grad)
    assert float(classifier.seen) == pytest.approx(0.25 + 7 / 70)


def test_the_domain_classifier_has_no_part_in_the_answer(tmp_path: Path) -> None:
    """It learns and is saved with the network; another run starts from the file as from any other."""
    result = run(adapted("dann"), tmp_path / "first")
    state = torch.load(tmp_path / "first" / "best.pt", weights_only=True)["model"]
    assert result["params"]["trainable"] == result["params"]["total"]
    assert 0 < float(state["domain_classifier.seen"]) <= 1
    second = config("freeze=full")
    second.model.weights = str(tmp_path / "first" / "best.pt")
    assert all(name.startswith("domain_classifier") for name in run(second, tmp_path / "second")["weights"]["unexpected"])


class Kitless:
    """What `recalibrate` asks of a kit."""

    autocast = None


def test_recalibrated_statistics_are_the_mean_of_those_of_the_batches() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    net = nn.Sequential(conv, norm, nn.Dropout(0.5)).train()
    batches = [torch.randn(6, 3, 8, 8, generator=G) + shift for shift in (0.0, 1.0)]
    before = torch.get_rng_state()
    adaptation.recalibrate(net, batches, Kitless())  # type: ignore[arg-type]
    with torch.no_grad():
        outputs = [conv(images) for images in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0))
    assert norm.momentum == 0.1
    assert net.training
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ConfigError, match="adapt=adabn renews the statistics of batch norm, but Linear has none"):
        adaptation.recalibrate(nn.Linear(2, 2), batches, Kitless())  # type: ignore[arg-type]


# --- In a run ---------------------------------------------------------------------------------------------------------------


def adapted(name: str, *overrides: str, weight: float = 1.0, images: str | None = None) -> Any:
    ours = config("freeze=full", *overrides)
    return replace(ours, adapt=replace(ours.adapt, name=name, weight=weight, images=images))


@pytest.mark.parametrize("own_splits", [True, False])
def test_no_labelled_and_no_test_image_is_among_the_unlabelled(own_splits: bool) -> None:
    dataset = config("dataset=digits" if not own_splits else "dataset=glyph_digits").dataset
    source = open_source(dataset, 0)
    splits = data.load_splits(dataset, config().transform, _square(), 0)
    unlabelled: Any = data.load_unlabelled(dataset, None, _square(), 0, splits.manifest)
    manifest = splits.manifest
    used = set(manifest.train)
    for origin, part in ((manifest.val_from, manifest.val), (manifest.test_from, manifest.test)):
        used |= set(part) if origin == "train" else set()
    assert set(unlabelled.indices) == set(range(len(source.train.labels))) - used
    assert set(unlabelled.labels.tolist()) == {-1}


def _square() -> Any:
    return models.create(config().model, 10).preprocessing


@pytest.mark.parametrize("name", ["adabn", "coral", "mmd", "dann"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    ours = adapted(name, "trainer.ema_decay=0.9", "transform=mixup")
    result = run(ours, tmp_path / "straight")
    with pytest.raises(Pruned):
        run(ours, tmp_path / "resumed", trial=Ends(1))
    run(ours, tmp_path / "resumed")
    for resumed, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(resumed, straight)
    assert result["images"]["unlabelled"] > 40
    assert result["test_opened"] == 1


def test_statistics_of_a_frozen_backbone_are_those_of_the_unlabelled_images(tmp_path: Path) -> None:
    ours = adapted("adabn", "freeze=classifier_only", f"paths.cache={tmp_path / 'cache'}")
    result = run(ours, tmp_path / "run")
    assert result["frontier"] is not None  # stored activations are those of the renewed network
    state = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["model"]
    torch.manual_seed(ours.seed)
    net: Any = models.create(ours.model, 10).net
    splits = data.load_splits(ours.dataset, ours.transform, _square(), 0)
    unlabelled: Any = data.load_unlabelled(ours.dataset, None, _square(), 0, splits.manifest)
    prepare = data.normalizer(_square())
    size = ours.trainer.eval_batch_size
    images = [unlabelled.take(list(range(i, i + size)), 0)[0] for i in range(0, len(unlabelled) - size + 1, size)]
    with torch.no_grad():
        means = torch.stack([net.stem(prepare(batch)).mean((0, 2, 3)) for batch in images])
    torch.testing.assert_close(state["norm.running_mean"], means.mean(0), rtol=1e-4, atol=1e-5)
    assert result["proof"][0]["before"] == result["proof"][0]["after"]


def test_a_folder_of_images_takes_the_place_of_what_was_left_out_and_goes_with_a_regularizer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / "deep" / f"{i}.png")
    ours = adapted("coral", images=str(tmp_path / "photos"))
    both = replace(ours, regularizer=replace(ours.regularizer, name="bss", weight=0.01))
    assert run(both, tmp_path / "run")["images"]["unlabelled"] == 5
    with pytest.raises(ConfigError, match="is no folder"):
        run(adapted("coral", images=str(tmp_path / "nowhere")), tmp_path / "other")


def test_a_backbone_that_gets_other_statistics_is_not_lent_to_other_runs() -> None:
    head_only = ["freeze=classifier_only", "dataset.shots=5"]
    assert Stock.serves(compose(head_only))
    assert not Stock.serves(compose([*head_only, "adapt=adabn"]))
    assert not Stock.serves(compose([*head_only, "freeze_strategy.norm_stats=stochastic"]))
