"""`fourfold place` measures what it says, tells what the embedded study found, and leaves the test split sealed."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourfold import advice, cli, data, measuring, place, placement
from fourfold.compose import compose
from fourfold.config import FreezeConfig, RunConfig
from fourfold.models import create, norms
from fourfold.transferability import batch_norm_shift, lift

ROOT = Path(__file__).parents[1]
FAKE = [
    "dataset=fake", "dataset.kwargs.num_classes=4", "dataset.kwargs.image_size=32", "dataset.kwargs.size=200",
    "dataset.val_size=40", "logger=none", "trainer.device=cpu", "trainer.eval_batch_size=64",
]  # fmt: skip
OWN = ["model=custom", f"model._target_={__name__}.Eye", "model.image_size=32"]


class Gate(nn.Module):
    """At 1 it gives the mean colour of an image, which tells its class; at 0, as it begins, the colour of one noisy pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.open = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.open * x.mean(dim=(2, 3)) + (1 - self.open) * x[:, :, 0, 0]


class Eye(nn.Module):
    """A network whose lift is known by what is in its gate."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.gate = Gate()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gate(x))


LEVELS = compose([]).place


def measured(config: RunConfig) -> placement.Placement:
    return measuring.measure(config, {name: compose([f"freeze={name}"]).freeze_strategy for name in place.STRATEGIES})


def weights(folder: Path, gate: float) -> str:
    file = folder / f"gate_{gate}.pt"
    net = Eye(4)
    nn.init.constant_(net.gate.open, gate)
    torch.save(net.state_dict(), file)
    return f"model.weights={file}"


def train_images(config: RunConfig, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """The first training images as the network sees them, read one by one, and their classes."""
    preprocessing = create(config.model, 4, pretrained=False).preprocessing
    train = data.load_splits(config.dataset, config.transform, preprocessing, config.seed).train
    images = torch.stack([train[i][0] for i in range(count)])
    return data.normalizer(preprocessing)(images), np.array([int(train[i][1]) for i in range(count)])


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(split: data.SealedSplit) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(data.SealedSplit, "open", opened)


def test_the_lift_is_that_of_what_the_head_is_given(tmp_path: Path, sealed: None) -> None:
    config = compose([*FAKE, *OWN, weights(tmp_path, 1.0), f"paths.outputs={tmp_path / 'outputs'}"])
    numbers = torch.get_rng_state()
    found = measured(config)
    assert torch.equal(numbers, torch.get_rng_state())
    images, labels = train_images(config, 160)
    pixel = images[:, :, 0, 0].numpy()
    expected = lift(images.mean(dim=(2, 3)).numpy(), [pixel, pixel], labels, seed=config.seed)
    assert found.lift.value == pytest.approx(expected.value)
    assert found.lift.low == pytest.approx(expected.low)
    assert found.similarity == "similar"
    assert found.shift is None  # it has no batch norm
    assert not (tmp_path / "outputs").exists()


def test_weights_that_are_no_better_than_random_ones_have_no_lift(tmp_path: Path) -> None:
    found = measured(compose([*FAKE, *OWN, weights(tmp_path, 0.0)]))
    assert found.lift.value == 0
    assert found.logme_gain == 0
    assert found.similarity == "different"
    assert found.shares == {"similar": 0, "middle": 0, "different": 1}


def test_shuffled_labels_take_the_lift_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network and images as those of the lift near 1."""
    first = measuring._first

    def shuffled(*given):
        images, labels = first(*given)
        return images, np.random.default_rng(0).permutation(labels)

    monkeypatch.setattr(measuring, "_first", shuffled)
    found = measured(compose([*FAKE, *OWN, weights(tmp_path, 1.0)]))
    assert abs(found.lift.value) < 0.2
    assert found.similarity == "different"


def test_a_prefix_is_looked_at_but_all_images_are_counted(tmp_path: Path) -> None:
    found = measured(compose([*FAKE, *OWN, weights(tmp_path, 1.0), "place.images=80"]))
    assert (found.seen, found.size.images, found.size.per_class) == (80, 160, 40)
    assert "the first 80 of 160 training images" in dict(place.told(found))["similarity"]


def test_too_few_images_have_a_size_and_no_similarity(tmp_path: Path) -> None:
    found = measured(compose([*FAKE, *OWN, weights(tmp_path, 1.0), "dataset.shots=3"]))
    page = dict(place.told(found))
    assert found.shares == {}
    assert "lift undefined" in page["similarity"]
    assert page["quadrant"].startswith("small; how similar is not known")
    assert page["suggested"].startswith("no strategy")


def test_statistics_are_set_on_the_images_and_their_shift_is_the_closed_form() -> None:
    config = compose([*FAKE, "model=micro_resnet"])
    net = create(config.model, 4, pretrained=False).net.eval()
    images, _ = train_images(config, 96)
    before = {name: param.clone() for name, param in net.named_parameters()}
    entering = net.stem(images).detach().double().transpose(0, 1).flatten(1)  # [C, M]
    batches = measuring._Prepared(images.split(32), nn.Identity(), torch.device("cpu"))

    def shift() -> float:
        with measuring._norms_watched(net) as seen, torch.no_grad():
            for batch in batches:
                net(batch)
        (first, *_) = seen
        closed = batch_norm_shift(first[0], first[1], entering.mean(dim=1), entering.var(dim=1, correction=0))
        assert measuring._shift([first]) == pytest.approx(closed, rel=1e-4)
        found = measuring._shift(seen)
        assert found is not None
        return found

    untouched = shift()
    norms.recalibrate(net, batches)
    torch.testing.assert_close(net.norm.running_mean.double(), entering.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(param, before[name]) for name, param in net.named_parameters())
    assert not any(module.training for module in net.modules())
    assert shift() < 0.01 < 0.1 < untouched


def test_images_per_parameter_that_learns(tmp_path: Path) -> None:
    config = compose([*FAKE, "model=micro_resnet"])
    torch.save(create(config.model, 4, pretrained=False).net.state_dict(), tmp_path / "random.pt")
    found = measured(compose([*FAKE, "model=micro_resnet", f"model.weights={tmp_path / 'random.pt'}"]))
    net = create(config.model, 4, pretrained=False).net
    head = sum(param.numel() for param in net.head.parameters())
    last = sum(param.numel() for param in net.stage3.parameters())
    whole = sum(param.numel() for param in net.parameters())
    assert found.size.learns == {"classifier_only": head, "last_blocks": last + head, "full": whole}
    assert f"classifier_only {160 / head:.3g}" in place._relative(found.size)


@pytest.mark.parametrize(
    ("per_class", "names"),
    [(5, ("small",)), (20, ("small",)), (21, ("small", "large")), (99, ("small", "large")), (100, ("large",))],
)
def test_between_small_and_large_is_both(per_class: int, names: tuple[str, ...]) -> None:
    assert placement.Size(10 * per_class, per_class, per_class, 10, {}).names(LEVELS) == names


def test_shares_count_the_draws_on_each_side_of_the_thresholds() -> None:
    assert measuring._shares(
        np.array([0.95, 0.9, 0.89, 0.5, 0.49]), replace(LEVELS, similar=0.9, different=0.5)
    ) == pytest.approx({"similar": 0.4, "middle": 0.4, "different": 0.2})


def test_the_figures_are_those_of_the_embedded_study() -> None:
    """Of its page's table, in which the strategy that validation chose is bold."""
    page = (ROOT / advice.STUDY).read_text(encoding="utf-8")
    header, *rows = re.findall(r"^\| (?:quadrant|similar|middle|different).*\|$", page[page.index("## What came out") :], re.M)
    names = re.findall(r"`(\w+)`", header)
    table = {}
    for row in rows:
        quadrant, *cells = (cell.strip(" *") for cell in row.strip("|").split("|"))
        table[tuple(quadrant.split(", "))] = dict(zip(names, cells, strict=False))
    assert {quadrant: evidence.accuracy for quadrant, evidence in advice.EVIDENCE.items()} == table
    assert all(evidence.suggested in place.STRATEGIES for evidence in advice.EVIDENCE.values())  # never from_scratch


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("dataset.task=regression", "dataset.task=regression"),
        ("dataset.task=multilabel", "dataset.task=multilabel"),
        ("freeze=from_scratch", "freeze=from_scratch starts from random weights"),
        ("freeze=full model.weights=null", "model.weights=null leaves nothing"),
        ("dataset.loader.collate=pad", "collate=pad"),
    ],
)
def test_what_has_no_place_is_refused_in_one_sentence(
    given: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # an earlier call in this process has set it
    assert cli.command(["place", *FAKE, *given.split()]) == cli.REFUSED
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert "\n" not in told


def test_the_command_makes_the_start_and_prints_the_page(
    tmp_path: Path, sealed_target: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=glyph_digits", "dataset.shots=5", "model.weights=experiment:pretrain_embedded_quick", "debug=smoke"]
    assert cli.command(["place", *words, "logger=none", "trainer.device=cpu", f"paths.outputs={tmp_path}"]) == 0
    assert list(tmp_path.glob("pretrained/*/best.pt"))
    page = capsys.readouterr().out
    labels = re.findall(r"^(\w+)  ", page, re.M)
    assert labels == ["similarity", "size", "quadrant", "textbook", "measured", "suggested", "limits"]
    assert "50 training images of 10 classes, 5 per class" in page
    assert not list(tmp_path.glob("runs/*"))


@pytest.fixture
def sealed_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start's own test split is opened by its run; the target's must not be."""
    measure = place.measure

    def watched(config: RunConfig, strategies: dict[str, FreezeConfig]) -> placement.Placement:
        def opened(split: data.SealedSplit) -> None:
            raise AssertionError("the test split was opened")

        monkeypatch.setattr(data.SealedSplit, "open", opened)
        return measure(config, strategies)

    monkeypatch.setattr(place, "measure", watched)


def test_several_networks_are_ranked_by_what_their_features_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The colour of a single noisy pixel, half a mean, and the mean colour that tells the class, given in another order."""
    files = [weights(tmp_path, gate).partition("=")[2] for gate in (0.0, 1.0, 0.1)]
    assert cli.command(["place", *FAKE, *OWN, f"model.weights={','.join(files)}", f"paths.outputs={tmp_path / 'out'}"]) == 0
    rows = re.findall(r"^(\d)\.  model.weights=\S*gate_(\S+)\.pt +(-?[\d.]+)", capsys.readouterr().out, re.M)
    assert [(rank, gate) for rank, gate, _ in rows] == [("1", "1.0"), ("2", "0.1"), ("3", "0.0")]
    assert [float(score) for *_, score in rows] == sorted((float(score) for *_, score in rows), reverse=True)
    assert not (tmp_path / "out").exists()


def test_targets_are_ranked_apart(tmp_path: Path) -> None:
    """Raw scores of two targets say nothing about each other."""
    gates = [weights(tmp_path, gate) for gate in (0.0, 1.0)]
    configs = [(f"{gate} {n}", compose([*FAKE, *OWN, gate, f"dataset.shots={n}"])) for gate in gates for n in (5, 20)]
    table = place.ranked([(label, config, measured(config)) for label, config in configs])
    assert re.findall(r"^(\d)\. ", table, re.M) == ["1", "2", "1", "2"]


def test_an_interval_is_not_placed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    assert cli.command(["place", *FAKE, "optimizer.lr=interval(1,2)"]) == cli.REFUSED
    assert "not intervals" in capsys.readouterr().err


def test_what_a_study_remembers_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([*FAKE, *OWN, weights(tmp_path, 1.0)])
    strategies = {name: compose([f"freeze={name}"]).freeze_strategy for name in place.STRATEGIES}
    file = tmp_path / "study" / "placements.json"
    assert placement.recalled(config, file) is None
    found = measuring.measure(config, strategies)
    first = measuring.remembered(config, strategies, file)
    assert replace(first, seconds=0) == replace(found, seconds=0)
    monkeypatch.setattr(measuring, "measure", lambda *given: pytest.fail("it was measured again"))
    assert measuring.remembered(config, strategies, file) == first
    assert placement.recalled(replace(config, seed=1), file) is None  # other images
    assert placement.recalled(replace(config, study="another"), file) == first
