"""Frozen means frozen: weights, norm statistics and dropout, on every strategy and every kind of model."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from fourfold import freeze, models, optim
from fourfold.config import ConfigError, FreezeConfig, ModelConfig, OptimizerConfig

CONF = Path(__file__).parents[1] / "conf"
BASE = yaml.safe_load((CONF / "config.yaml").read_text())
STRATEGIES = sorted(path.stem for path in (CONF / "freeze_strategy").glob("*.yaml"))
EPOCHS = 6


def strategy(name: str, **changes) -> FreezeConfig:
    option = yaml.safe_load((CONF / "freeze_strategy" / f"{name}.yaml").read_text())
    return FreezeConfig(**{**BASE["freeze_strategy"], **option, **changes})


class Tower(nn.Module):
    """A user's own model: norms with and without weights, dropout in the backbone and before the head."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Dropout(0.5))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.pool(self.body(self.stem(x) + self.token)))


SOURCES = {
    "torchvision": {"source": "torchvision", "name": "resnet18"},
    "timm": {"source": "timm", "name": "test_efficientnet"},
    "micro_resnet": {"source": "micro_resnet", "name": "micro_resnet"},
    "target": {"source": "target", "name": "tower", "_target_": f"{__name__}.Tower"},
}
SIZES = {"torchvision": 64, "timm": 64, "micro_resnet": 32, "target": 32}


def build(source: str) -> models.TransferModel:
    torch.manual_seed(0)
    model = models.create(ModelConfig(**{**BASE["model"], **SOURCES[source], "weights": None}), 4)
    model.net.train()
    return model


def train(net: nn.Module, optimizer: torch.optim.Optimizer, size: int, steps: int = 10) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        net.train()  # as any loop would
        images = torch.randn(4, 3, size, size, generator=generator) + 1
        nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def sgd(model: models.TransferModel, groups: list[freeze.Group]) -> torch.optim.Optimizer:
    return optim.create(model.net, groups, OptimizerConfig("sgd", 0.05, 0.005, 0.1, 0.9, {}))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_frozen_tensors_are_bit_identical_after_ten_steps_and_the_rest_learns(name: str, source: str) -> None:
    model = build(source)
    plan = freeze.plan(model, strategy(name), EPOCHS)
    keys = list(model.net.state_dict())
    optimizer: torch.optim.Optimizer | None = None
    for index, phase in enumerate(plan.phases):
        freeze.apply(model.net, phase, plan.norm_stats)
        groups = [group for group in plan.groups if group.phase == index]
        if optimizer is None:
            optimizer = sgd(model, groups)
        else:
            optim.extend(optimizer, model.net, groups, OptimizerConfig("sgd", 0.05, 0.005, 0.1, 0.9, {}))
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert {id(p) for p in held} == {id(p) for n, p in model.net.named_parameters() if n in phase.trainable}
        assert len(held) == len(phase.trainable)
        before = {key: value.clone() for key, value in model.net.state_dict().items()}
        frozen = freeze.frozen(model.net)
        proof = freeze.begin_proof(model.net, index, 0)
        train(model.net, optimizer, SIZES[source], steps=10 if index == len(plan.phases) - 1 else 2)
        after = model.net.state_dict()
        moved = {key for key in keys if not torch.equal(before[key], after[key])}
        assert not moved & set(frozen)
        assert moved & phase.trainable
        assert freeze.end_proof(model.net, proof, 1).after == proof.before
    assert list(model.net.state_dict()) == keys


def test_a_moved_tensor_breaks_the_proof() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("classifier_only"), EPOCHS)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    proof = freeze.begin_proof(model.net, 0, 0)
    model.net.bn1.running_mean += 1e-7
    with pytest.raises(freeze.FrozenMoved, match="something frozen moved"):
        freeze.end_proof(model.net, proof, 3)


@pytest.mark.parametrize("source", SOURCES)
def test_no_call_of_train_reaches_a_frozen_norm(source: str) -> None:
    model = build(source)
    plan = freeze.plan(model, strategy("classifier_only"), EPOCHS)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    twin = copy.deepcopy(model.net)  # as an exponential moving average makes one
    for net in (model.net, twin):
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        for call in (net.train, *(module.train for module in net.modules())):
            call()
            assert not any(norm.training for norm in norms)
    for a, b in zip(model.net.modules(), twin.modules(), strict=True):
        if "train" in a.__dict__:
            assert b.__dict__["train"].__self__ is b


def test_dropout_is_off_inside_the_frozen_part_and_on_in_front_of_the_head() -> None:
    model = build("target")
    plan = freeze.plan(model, strategy("classifier_only"), EPOCHS)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    model.net.train()
    assert not model.net.stem[3].training
    assert not model.net.body[3].training
    assert model.net.out[0].training
    freeze.apply(model.net, freeze.plan(model, strategy("full"), EPOCHS).phases[0], "follow")
    assert all(module.training for module in model.net.modules())


def test_vgg_dropout_between_frozen_layers_is_off() -> None:
    model = models.create(ModelConfig(**{**BASE["model"], "source": "torchvision", "name": "vgg11", "weights": None}), 3)
    plan = freeze.plan(model, strategy("classifier_only"), EPOCHS)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    model.net.train()
    assert [module.training for module in model.net.classifier] == [False] * 6 + [True]
    assert plan.phases[0].trainable == {"classifier.6.weight", "classifier.6.bias"}


def test_norm_statistics_follow_only_norms_that_learn_whole() -> None:
    model = build("torchvision")
    for name, moves in (("norm_only", True), ("bias_only", False), ("full", True)):
        plan = freeze.plan(model, strategy(name), EPOCHS)
        freeze.apply(model.net, plan.phases[0], plan.norm_stats)
        before = model.net.bn1.running_mean.clone()
        train(model.net, sgd(model, list(plan.groups)), 64, steps=1)
        assert torch.equal(before, model.net.bn1.running_mean) is not moves


def test_weight_decay_reaches_neither_frozen_weights_nor_biases_and_norms() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("last_blocks", blocks=2), EPOCHS)
    shapes = {name: parameter.ndim for name, parameter in model.net.named_parameters()}
    optimizer = sgd(model, list(plan.groups))
    for group, described in zip(optimizer.param_groups, plan.groups, strict=True):
        assert all((shapes[name] > 1) is described.decay for name in described.params)
        assert group["weight_decay"] == (0.1 if described.decay else 0.0)


def test_every_parameter_that_learns_is_in_exactly_one_group() -> None:
    for source in SOURCES:
        for name in STRATEGIES:
            model = build(source)
            plan = freeze.plan(model, strategy(name), 100)
            named = [parameter for group in plan.groups for parameter in group.params]
            assert len(named) == len(set(named))
            assert set(named) == plan.phases[-1].trainable


def test_unfreezing_keeps_the_optimizer_state_of_what_was_trained() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("gradual"), EPOCHS)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    optimizer = sgd(model, [group for group in plan.groups if group.phase == 0])
    train(model.net, optimizer, 64, steps=2)
    momentum = optimizer.state[model.net.fc.weight]["momentum_buffer"].clone()
    freeze.apply(model.net, plan.phases[1], plan.norm_stats)
    optim.extend(
        optimizer, model.net, [g for g in plan.groups if g.phase == 1], OptimizerConfig("sgd", 0.05, 0.005, 0.1, 0.9, {})
    )
    assert torch.equal(optimizer.state[model.net.fc.weight]["momentum_buffer"], momentum)


def test_learning_rates_follow_depth_and_survive_the_schedule() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("layer_decay"), EPOCHS)
    rate = {name: group.lr_mult for group in plan.groups for name in group.params}
    blocks = model.blocks
    assert rate["fc.weight"] == 1.0
    assert rate[blocks[-1].params[0]] == pytest.approx(0.75)
    assert rate[blocks[0].params[0]] == pytest.approx(0.75 ** len(blocks))
    optimizer = sgd(model, list(plan.groups))
    optim.set_factor(optimizer, 0.5)
    optim.set_factor(optimizer, 0.2)
    for group, described in zip(optimizer.param_groups, plan.groups, strict=True):
        assert group["lr"] == pytest.approx(0.05 * described.lr_mult * 0.2)
    two = freeze.plan(model, strategy("two_rate"), EPOCHS)
    assert {group.lr_mult for group in two.groups} == {1.0, 0.1}


def test_gradual_unfreezes_from_the_head_downwards_and_lp_ft_all_at_once() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("gradual", unfreeze_every=2), 5)
    assert [phase.start for phase in plan.phases] == [0, 2, 4]
    assert plan.phases[0].trainable == {"fc.weight", "fc.bias"}
    assert plan.phases[1].trainable - plan.phases[0].trainable == set(model.blocks[-1].params)
    assert plan.phases[2].trainable - plan.phases[1].trainable == set(model.blocks[-2].params)
    everything = freeze.plan(model, strategy("gradual"), 100)
    assert everything.phases[-1].trainable == {name for name, _ in model.net.named_parameters()}
    probe = freeze.plan(model, strategy("lp_ft"), 10)
    assert [(phase.start, phase.lr_mult) for phase in probe.phases] == [(0, 1.0), (5, 0.1)]


def test_a_gradient_from_before_freezing_moves_nothing() -> None:
    model = build("torchvision")
    everything = freeze.plan(model, strategy("full"), EPOCHS)
    freeze.apply(model.net, everything.phases[0], "follow")
    optimizer = sgd(model, list(everything.groups))
    model.net(torch.randn(2, 3, 64, 64)).sum().backward()
    freeze.apply(model.net, freeze.plan(model, strategy("classifier_only"), EPOCHS).phases[0], "follow")
    before = model.net.conv1.weight.clone()
    optimizer.step()
    assert torch.equal(before, model.net.conv1.weight)


def test_impossible_strategies_are_told_in_one_sentence() -> None:
    model = build("torchvision")
    count = len(model.blocks)
    with pytest.raises(
        ConfigError, match=rf"freeze_strategy.blocks=99, but this model has {count} blocks: choose 1 to {count}"
    ):
        freeze.plan(model, strategy("last_blocks", blocks=99), EPOCHS)
    with pytest.raises(ConfigError, match="probe_epochs=6 leaves nothing"):
        freeze.plan(model, strategy("lp_ft", probe_epochs=6), EPOCHS)
    plain = models.create(ModelConfig(**{**BASE["model"], "source": "torchvision", "name": "alexnet", "weights": None}), 3)
    with pytest.raises(ConfigError, match="has no normalisation layer"):
        freeze.plan(plain, strategy("norm_only"), EPOCHS)


def test_a_fraction_of_the_blocks_is_rounded_up() -> None:
    model = build("torchvision")
    plan = freeze.plan(model, strategy("last_blocks", blocks=0.5), EPOCHS)
    expected = {name for block in model.blocks[-((len(model.blocks) + 1) // 2) :] for name in block.params}
    assert plan.phases[0].trainable == expected | {"fc.weight", "fc.bias"}
