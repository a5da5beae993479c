"""Each term against its closed form, and in a run: it holds what it should hold."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fourfold import freeze, models, regularizers
from fourfold.compose import compose
from fourfold.config import ConfigError, RegularizerConfig
from fourfold.models import TransferModel, WeightsReport
from fourfold.ranks import Ranks
from fourfold.run import run
from test_run import Ends, Pruned, config, record, same

G = torch.Generator().manual_seed(0)
IMAGES = torch.randn(6, 3, 32, 32, generator=G)
CLASSES = torch.randint(0, 4, (6,), generator=G)
ALONE = Ranks(0, 1, torch.device("cpu"))


def asked(name: str, **changes: Any) -> RegularizerConfig:
    values = {"weight": 0.3, "head_weight": 0.0, "smallest": 1, "attention_images": 0, "layers": None, **changes}
    return RegularizerConfig(name=name, **{"relationship": "direct", "temperature": 1.0, **values})


def sample(count: int) -> tuple[Tensor, Tensor]:
    return IMAGES[:count], CLASSES[:count]


def whole() -> list[tuple[Tensor, Tensor]]:
    return [(IMAGES[:4], CLASSES[:4]), (IMAGES[4:], CLASSES[4:])]


def model(name: str = "micro_resnet") -> TransferModel:
    torch.manual_seed(1)
    return models.create(compose([f"model={name}", "model.weights=null", "freeze=full"]).model, 4)


def moved(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_none_is_nothing() -> None:
    assert regularizers.create(asked("none"), model(), sample, whole, ALONE) is None


def test_l2_sp_is_half_the_squared_distance_from_the_start_and_of_the_head_from_nothing() -> None:
    ours = model()
    start = {name: parameter.detach().clone() for name, parameter in ours.net.named_parameters()}
    penalty = regularizers.create(asked("l2_sp", head_weight=0.7), ours, sample, whole, ALONE)
    moved(ours.net)
    assert penalty is not None
    value = penalty(None, CLASSES)
    value.backward()
    total = 0.0
    for name, parameter in ours.net.named_parameters():
        head = name.startswith("head.")
        off = (parameter if head else parameter - start[name]).detach().double()
        total += (0.7 if head else 0.3) / 2 * float((off**2).sum())
        torch.testing.assert_close(parameter.grad, ((0.7 if head else 0.3) * off).float())  # the derivative of a square
    assert value.item() == pytest.approx(total, rel=1e-5)


def test_l2_sp_treats_what_a_checkpoint_did_not_fill_as_new() -> None:
    ours = model()
    filled = replace(ours, weights=WeightsReport("file", missing=("stem.weight",)))
    assert regularizers.transferred(filled) == {name for block in ours.blocks for name in block.params} - {"stem.weight"}


def test_l2_sp_ignores_what_is_frozen() -> None:
    ours = model()
    penalty = regularizers.create(asked("l2_sp"), ours, sample, whole, ALONE)
    assert penalty is not None
    for name, parameter in ours.net.named_parameters():
        parameter.requires_grad_(name.startswith(("stage3", "head")))
    moved(ours.net)
    before = penalty(None, CLASSES)
    with torch.no_grad():
        dict(ours.net.named_parameters())["stem.weight"] += 1.0
    assert penalty(None, CLASSES).item() == before.item() > 0


@pytest.mark.parametrize("smallest", [1, 3])
def test_bss_is_the_lowest_eigenvalues_of_the_features_gram_matrix(smallest: int) -> None:
    ours = model()
    penalty = regularizers.create(asked("bss", smallest=smallest), ours, sample, whole, ALONE)
    features: list[Tensor] = []
    ours.net.head.register_forward_pre_hook(lambda module, args: features.append(args[0]))  # type: ignore[operator, union-attr]
    ours.net(IMAGES)
    assert penalty is not None
    gram = features[0].detach().double()
    eigenvalues = torch.linalg.eigvalsh(gram @ gram.T)  # [N, N], rising: squared singular values
    value = penalty(IMAGES, CLASSES)
    assert value.item() == pytest.approx(0.3 * float(eigenvalues[:smallest].sum()), rel=1e-3)
    value.backward()
    assert ours.net.stem.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def naive_maps(net: nn.Module, layers: tuple[str, ...]) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: maps.__setitem__(name, output))
        for name in layers
    ]
    net(IMAGES)
    for hook in hooks:
        hook.remove()
    return maps


def test_feature_distillation_is_the_distance_of_the_feature_vectors_written_out() -> None:
    ours, theirs = model(), model()
    penalty = regularizers.create(asked("feature_distillation"), ours, sample, whole, ALONE)
    layers = regularizers.layers(ours, None)
    assert layers == ("stem", "stage1", "stage2", "stage3")
    moved(ours.net)
    ours.net.train()
    here, there = naive_maps(ours.net, layers), naive_maps(theirs.net.eval(), layers)
    total = 0.0
    for name in layers:
        images, _, height, width = here[name].shape
        for image in range(images):
            for position in range(height * width):
                a, b = (maps[name][image].flatten(1)[:, position].detach().double() for maps in (here, there))
                total += 0.3 / 2 * float(((a - b) ** 2).sum()) / (images * height * width)
    assert penalty is not None
    ours.net(IMAGES)
    assert penalty(IMAGES, CLASSES).item() == pytest.approx(total, rel=1e-4)


def test_delta_weighs_each_channel_by_what_a_classifier_loses_without_it() -> None:
    """Against a loop over channels on a network that is cut open by hand."""
    ours = model()
    ours.net.eval()
    stem, head = nn.Sequential(ours.net.stem, ours.net.norm, ours.net.relu), ours.net.stage3  # type: ignore[arg-type]
    with torch.no_grad():
        start = ours.net.stage2(ours.net.stage1(stem(IMAGES)))  # type: ignore[operator]
        features = head(start).mean((2, 3))  # type: ignore[operator]
    probe = LogisticRegression(C=1 / (regularizers.SHRINK * len(IMAGES)), tol=1e-6, max_iter=1000)
    probe.fit(features.numpy(), CLASSES.numpy())
    seen = {int(label): row for row, label in enumerate(probe.classes_)}

    def loss(maps: Tensor) -> float:
        with torch.no_grad():
            p = probe.predict_proba(head(maps).mean((2, 3)).numpy())  # type: ignore[operator]
        return float(-np.log([p[i, seen[int(label)]] for i, label in enumerate(CLASSES)]).mean())

    rise = []
    for channel in range(start.shape[1]):
        without = start.clone()
        without[:, channel] = 0
        rise.append(loss(without) - loss(start))
    expected = torch.softmax(torch.tensor(rise, dtype=torch.float32) / 5, dim=0)
    (found,) = regularizers.attention(ours, ["stage2"], IMAGES, CLASSES)
    assert found.sum().item() == pytest.approx(1)
    assert expected.std() > 0
    torch.testing.assert_close(len(found) * found, len(found) * expected, rtol=0, atol=0.02)  # classes that are absent


def test_attention_computes_what_comes_before_a_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is to the bit what whole passes give, though the network changes its tensors in place."""
    asked = compose(["model=resnet18", "model.image_size=32", "model.weights=null", "freeze=from_scratch", "dataset=fake"])
    torch.manual_seed(0)
    ours = models.create(asked.model, 4, pretrained=False)
    images, passes = torch.randn(4, 3, 32, 32), list[int]()
    ours.net.get_submodule("layer2").register_forward_hook(lambda *_: passes.append(1))
    stem = ours.net.get_submodule("conv1")
    truly = stem.forward
    stem.__dict__["forward"] = lambda images: passes.append(0) or truly(images)
    found = regularizers.attention(ours, ["layer2.1", "layer3.1"], images, torch.arange(4))
    assert passes.count(0) < 10 < 128 + 256 < passes.count(1)
    monkeypatch.setattr(regularizers, "replaying", lambda *_: nullcontext())
    whole = regularizers.attention(ours, ["layer2.1", "layer3.1"], images, torch.arange(4))
    assert all(map(torch.equal, found, whole))


def test_delta_is_feature_distillation_with_attention_and_a_term_of_the_head() -> None:
    ours, same_again = model(), model()
    equal = regularizers.create(asked("feature_distillation"), ours, sample, whole, ALONE)
    held = regularizers.create(asked("delta", head_weight=0.7), same_again, sample, whole, ALONE)
    for each in (ours, same_again):
        moved(each.net)
        each.net(IMAGES)
    assert equal is not None
    assert held is not None
    v = sum(float((p.detach() ** 2).sum()) for name, p in ours.net.named_parameters() if name.startswith("head"))
    assert held(IMAGES, CLASSES).item() == pytest.approx(equal(IMAGES, CLASSES).item() + 0.35 * v, rel=1e-5)

    weighed = model()
    channels = [torch.linspace(0.1, 1.0, width) for width in (16, 16, 32, 64)]
    names = ("stem", "stage1", "stage2", "stage3")
    penalty = regularizers.delta(weighed.net, names, frozenset(), 0.3, 0.0, channels)
    moved(weighed.net)
    weighed.net.eval()
    here, there = naive_maps(weighed.net, names), naive_maps(model().net.eval(), names)
    total = sum(
        len(a) * float((a * ((here[name] - there[name]).detach() ** 2).mean((0, 2, 3))).sum())
        for a, name in zip(channels, names, strict=True)
    )
    weighed.net(IMAGES)
    assert penalty(IMAGES, CLASSES).item() == pytest.approx(0.15 * total, rel=1e-4)


def test_the_starting_network_is_never_trained_and_draws_nothing() -> None:
    ours = model()
    penalty = regularizers.create(asked("feature_distillation"), ours, sample, whole, ALONE)
    assert penalty is not None
    ours.net.train()
    moved(ours.net)
    ours.net(IMAGES)
    before = torch.get_rng_state()
    first = penalty(IMAGES, CLASSES)
    assert torch.equal(before, torch.get_rng_state())
    first.backward()
    ours.net(IMAGES)
    assert penalty(IMAGES, CLASSES).item() == float(first)  # statistics of the copy have not moved


def two_headed(sources: int = 5) -> TransferModel:
    """A network that told apart as many source classes before."""
    ours = model()
    torch.manual_seed(3)
    ours.source_head = nn.Linear(64, sources)
    nn.init.normal_(ours.source_head.weight)
    regularizers.add_source_head(ours)
    return ours


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_co_tuning_is_the_cross_entropy_of_the_old_head_with_the_classes_that_the_target_looks_like(temperature: float) -> None:
    """Image by image, class by class."""
    ours = two_headed()
    start = copy.deepcopy(ours.net).eval()
    said = []
    with torch.no_grad():
        for image in IMAGES:
            maps = start.stage3(start.stage2(start.stage1(start.relu(start.norm(start.stem(image[None]))))))  # type: ignore[operator]
            logits = start.source_head(maps.mean((2, 3)))[0] / temperature  # type: ignore[operator]
            said.append((logits.exp() / logits.exp().sum()).double().numpy())
    matched = {
        label: np.mean([p for p, c in zip(said, CLASSES, strict=True) if c == label], axis=0) for label in set(CLASSES.tolist())
    }
    penalty = regularizers.create(asked("co_tuning", temperature=temperature), ours, sample, whole, ALONE)
    assert penalty is not None
    moved(ours.net)
    ours.net.eval()
    features: list[Tensor] = []
    ours.net.head.register_forward_pre_hook(lambda module, args: features.append(args[0]))  # type: ignore[operator, union-attr]
    ours.net(IMAGES)
    total = 0.0
    for feature, label in zip(features[0], CLASSES.tolist(), strict=True):
        logits = (ours.net.source_head.weight @ feature + ours.net.source_head.bias).detach().double().numpy()  # type: ignore[operator, union-attr]
        chances = np.exp(logits) / np.exp(logits).sum()
        total -= 0.3 * sum(matched[label][s] * math.log(chances[s]) for s in range(5)) / len(IMAGES)
    value = penalty(IMAGES, CLASSES)
    assert value.item() == pytest.approx(total, rel=1e-4)
    value.backward()
    assert ours.net.source_head.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert ours.net.stem.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert ours.net.head.weight.grad is None  # type: ignore[union-attr]


def test_co_tuning_blends_the_source_classes_of_blended_labels() -> None:
    ours = two_headed()
    penalty = regularizers.create(asked("co_tuning"), ours, sample, whole, ALONE)
    assert penalty is not None
    hard = torch.nn.functional.one_hot(CLASSES, 4).float()

    def value(targets: Tensor) -> float:
        ours.net.eval()(IMAGES)
        return penalty(IMAGES, targets).item()  # type: ignore[misc]

    assert value(hard) == pytest.approx(value(CLASSES), rel=1e-6)
    flipped = CLASSES.flip(0)
    mixed = 0.3 * hard + 0.7 * torch.nn.functional.one_hot(flipped, 4)
    assert value(mixed) == pytest.approx(0.3 * value(CLASSES) + 0.7 * value(flipped), rel=1e-5)  # it is linear in the labels


def test_co_tuning_says_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"co_tuning needs the classifier of the starting weights .*, but they bring none"):
        regularizers.add_source_head(model())
    with pytest.raises(ConfigError, match=r"relationship=reverse judges by images .* but a class has one training image only"):
        regularizers.create(
            asked("co_tuning", relationship="reverse"), two_headed(), sample, lambda: [(IMAGES[:3], torch.arange(3))], ALONE
        )


def test_four_blocks_spread_evenly_are_compared_and_others_can_be_named() -> None:
    torch.manual_seed(1)
    resnet = model("resnet18")
    assert regularizers.layers(resnet, None) == ("layer1.1", "layer2.1", "layer3.1", "layer4.1")
    assert regularizers.layers(resnet, ["layer3"]) == ("layer3",)
    with pytest.raises(ConfigError, match=r"regularizer.layers names layer9.*did you mean layer"):
        regularizers.layers(resnet, ["layer9"])


def test_no_hook_speaks_without_gradients() -> None:
    ours = model()
    penalty = regularizers.create(asked("bss"), ours, sample, whole, ALONE)
    with torch.no_grad():
        ours.net(IMAGES)
    assert penalty is not None
    with pytest.raises(KeyError):
        penalty(IMAGES, CLASSES)


# --- In a run ---------------------------------------------------------------------------------------------------------------


def regularized(name: str, *overrides: str) -> Any:
    """A run that starts from weights of its own, which the door takes for random."""
    ours = config("freeze=full", *overrides)
    return replace(ours, regularizer=asked(name, weight=0.1), optimizer=replace(ours.optimizer, weight_decay=0.0))


def test_a_heavy_l2_sp_keeps_the_backbone_and_lets_the_head_learn(tmp_path: Path) -> None:
    plain, held = config("freeze=full", "optimizer=sgd"), regularized("l2_sp", "optimizer=sgd")
    held = replace(held, regularizer=replace(held.regularizer, weight=50.0))  # times the rate of 0.01: half the way back
    off = {}
    for name, each in (("plain", plain), ("held", held)):
        run(each, tmp_path / name)
        weights = torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        torch.manual_seed(each.seed)
        start = models.create(each.model, 10).net.state_dict()
        off[name] = {key: float((weights[key] - start[key]).norm()) for key in ("stage2.conv1.weight", "head.weight")}
    assert off["held"]["stage2.conv1.weight"] < 0.3 * off["plain"]["stage2.conv1.weight"]
    assert off["held"]["head.weight"] > 0.5 * off["plain"]["head.weight"]


@pytest.mark.parametrize("name", ["l2_sp", "bss", "feature_distillation", "delta", "co_tuning"])
def test_a_resumed_run_knows_where_it_started(name: str, tmp_path: Path) -> None:
    ours = regularized(name, "trainer.ema_decay=0.9")
    ours = replace(ours, regularizer=replace(ours.regularizer, attention_images=8))
    result = run(ours, tmp_path / "straight")
    with pytest.raises(Pruned):
        run(ours, tmp_path / "resumed", trial=Ends(1))
    run(ours, tmp_path / "resumed")
    for resumed, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(resumed, straight)
    assert (
        result["metrics"]["train"]["loss"]
        != run(config("freeze=full", "trainer.ema_decay=0.9"), tmp_path / "plain")["metrics"]["train"]["loss"]
    )


@pytest.mark.parametrize("name", ["l2_sp", "bss", "feature_distillation", "co_tuning"])
def test_a_frozen_prefix_is_stored_only_where_the_term_can_do_without_images(name: str, tmp_path: Path) -> None:
    ours = regularized(name, "freeze_strategy.trainable=last_blocks", "freeze_strategy.blocks=1")
    stored = run(replace(ours, paths=replace(ours.paths, cache=str(tmp_path / "cache"))), tmp_path / "auto")
    whole = run(replace(ours, cache=replace(ours.cache, activations="off")), tmp_path / "off")
    assert (stored["frontier"] is None) == (name == "feature_distillation")
    assert stored["metrics"]["test"] == pytest.approx(whole["metrics"]["test"], rel=1e-5)
    assert stored["metrics"]["train"]["loss"] == pytest.approx(whole["metrics"]["train"]["loss"], rel=1e-5)


def test_co_tuning_trains_the_head_of_the_checkpoint_that_it_starts_from(tmp_path: Path) -> None:
    """A run on ten digits starts from one on letters: its old head learns, and is left aside by whoever starts from it."""
    letters = config("freeze=full", "dataset=glyphs", "dataset.train_size=75", "dataset.val_size=75", "dataset.test_size=75")
    run(letters, tmp_path / "letters")
    ours = config("freeze=full", "regularizer=co_tuning")
    ours.model.weights = str(tmp_path / "letters" / "best.pt")
    result = run(ours, tmp_path / "digits")
    before, after = (torch.load(tmp_path / name / "best.pt", weights_only=True)["model"] for name in ("letters", "digits"))
    assert after["source_head.weight"].shape == before["head.weight"].shape == (75, 64)
    assert after["head.weight"].shape == (10, 64)
    moved = (after["source_head.weight"] - before["head.weight"]).norm() / before["head.weight"].norm()
    assert 0 < moved < 0.5
    assert result["params"]["trainable"] == result["params"]["total"]
    plan = freeze.plan(two_headed(), compose(["freeze=two_rate"]).freeze_strategy, epochs=3)
    rates = {name: group.lr_mult for group in plan.groups for name in group.params}
    assert rates["source_head.weight"] == rates["stage3.conv1.weight"] == 0.1 * rates["head.weight"]
    following = config("freeze=full")
    following.model.weights = str(tmp_path / "digits" / "best.pt")
    assert set(run(following, tmp_path / "following")["weights"]["unexpected"]) == {"source_head.weight", "source_head.bias"}


class Reaching(nn.Module):
    """Its first layer changes what it was given, which the head reads: a replay of answers alone would not do so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = Doubling(), nn.Conv2d(3, 4, 1), nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = images.clone()
        self.first(maps)
        return self.fc(torch.cat([self.second(maps), maps], dim=1).mean((2, 3)))


class Doubling(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mul_(2)


def test_attention_of_a_network_that_cannot_be_replayed_takes_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = replace(model(), net=Reaching(), heads=("fc",))
    images = torch.randn(4, 3, 8, 8)
    monkeypatch.setattr(regularizers, "outputs", lambda model: {"second": (4, 4, 8, 8)})
    (found,) = regularizers.attention(ours, ["second"], images, torch.arange(4))
    monkeypatch.setattr(regularizers, "replaying", lambda *_: nullcontext())
    (whole,) = regularizers.attention(ours, ["second"], images, torch.arange(4))
    assert torch.equal(found, whole)
