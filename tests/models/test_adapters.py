"""Adapters leave the network as it was when they are new, and amount to a plain network when they have learnt."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold import freeze, models
from fourfold.compose import compose
from fourfold.config import AdapterConfig, ConfigError
from fourfold.models import TransferModel, adapters

pytest.importorskip("peft", reason="needs the extra `adapters`")

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KINDS = ["lora", "dora", "loha", "lokr", "ia3"]
VIT = ["model=timm", "model.name=test_vit", "model.image_size=32"]


def asked(kind: str, **changes: Any) -> AdapterConfig:
    return AdapterConfig(**{"kind": kind, "rank": 4, "alpha": 6, "dropout": 0.0, **changes})


def plain(*overrides: str) -> TransferModel:
    torch.manual_seed(0)
    config = compose([*(overrides or ["model=micro_resnet"]), "model.weights=null", "freeze=full"])
    return models.create(config.model, 5)


def learnt(model: TransferModel) -> None:
    """Adapters as training might leave them, none of them zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.net.named_parameters():
            if name in model.adapters:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def answer(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net.eval()(IMAGES)


@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_change_nothing(kind: str) -> None:
    before = answer(plain().net)
    after = answer(adapters.add(plain(), asked(kind)).net)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)  # dora divides by a norm and multiplies by it again


def test_none_leaves_the_model_alone() -> None:
    model = plain()
    assert adapters.add(model, asked("none")) is model


@pytest.mark.parametrize("overrides", [["model=micro_resnet"], VIT], ids=["convolutions", "linear"])
def test_lora_is_w_plus_alpha_over_r_b_a(overrides: list[str]) -> None:
    """The closed form (Hu et al. 2022, eq. 3); a convolution's B has a kernel of 1, so its update is their product as well."""
    base = plain(*overrides)
    model = adapters.add(plain(*overrides), asked("lora"))
    learnt(model)
    state, weights = model.net.state_dict(), dict(base.net.state_dict())
    changed = 0
    for name in weights:
        layer, _, kind = name.rpartition(".")
        if f"{layer}.lora_A.default.weight" in state and kind == "weight":
            a, b = (state[f"{layer}.lora_{part}.default.weight"] for part in "AB")  # [r, I, ...] and [O, r, ...]
            update = torch.einsum("or,ri->oi", b.flatten(1), a.flatten(1)).reshape(weights[name].shape)
            weights[name] = weights[name] + 6 / 4 * update
            changed += 1
    assert changed == len(adapters.layers(base)) > 5
    merged = models.merged(model)
    assert merged.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(merged[name], weight, rtol=1e-4, atol=1e-6)
    base.net.load_state_dict(weights)
    torch.testing.assert_close(answer(base.net), answer(model.net), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overrides", [["model=micro_resnet"], VIT], ids=["convolutions", "linear"])
def test_merged_adapters_give_the_same_logits_in_the_plain_network(kind: str, overrides: list[str]) -> None:
    base = plain(*overrides)
    model = adapters.add(plain(*overrides), asked(kind))
    learnt(model)
    before = answer(base.net)
    base.net.load_state_dict(models.merged(model))
    torch.testing.assert_close(answer(base.net), answer(model.net), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(answer(base.net), before, atol=1e-2)


def test_a_merge_that_changes_the_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import Conv2d

    model = adapters.add(plain(), asked("lora"))
    learnt(model)
    monkeypatch.setattr(Conv2d, "merge", lambda self: None)
    with pytest.raises(adapters.NotMerged, match="logits differ"):
        models.merged(model)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_head_learn_and_nothing_else_moves(kind: str) -> None:
    config = compose(["model=micro_resnet", "model.weights=default", f"freeze={kind}"])
    model = adapters.add(plain(), config.freeze_strategy.adapter)
    plan = freeze.plan(model, config.freeze_strategy, epochs=2)
    head = {"head.weight", "head.bias"}
    assert plan.phases[0].trainable == model.adapters | head
    assert sorted(name for group in plan.groups for name in group.params) == sorted(model.adapters | head)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    proof = freeze.begin_proof(model.net, 0, 0)
    before = {name: parameter.detach().clone() for name, parameter in model.net.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.net.parameters() if p.requires_grad], lr=0.1)
    model.net.train()
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model.net(IMAGES), torch.arange(4)).backward()
        optimizer.step()
    assert freeze.end_proof(model.net, proof, 1).after == proof.before
    moved = {name for name, parameter in model.net.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == model.adapters | head
    frozen = {name.replace(".base_layer", "") for name in freeze.frozen(model.net)}
    assert frozen == set(plain().net.state_dict()) - head  # weights, and the statistics of batch norm


def test_every_parameter_belongs_to_one_block_and_adapters_to_the_block_of_their_layer() -> None:
    model = adapters.add(plain(), asked("lora"))
    names = [name for name, _ in model.net.named_parameters()]
    owned = [name for block in model.blocks for name in block.params]
    assert sorted([*owned, "head.weight", "head.bias"]) == sorted(names)
    stage2 = next(block for block in model.blocks if block.name == "stage2")
    assert "stage2.conv1.lora_A.default.weight" in stage2.params
    assert all(name.startswith("stage2.") for name in stage2.params)


def test_attention_whose_weights_are_read_uncalled_is_left_alone() -> None:
    """torchvision's transformers: an adapter beside `out_proj` would be silently ignored."""
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    kwargs = [f"+model.kwargs.{key}={value}" for key, value in sizes.items()]
    vit = plain("model=custom", "model._target_=torchvision.models.VisionTransformer", "model.image_size=32", *kwargs)
    chosen = adapters.layers(vit)
    assert "encoder.layers.encoder_layer_0.mlp.0" in chosen
    assert not [name for name in chosen if "self_attention" in name]


def test_dropout_of_adapters_is_on_though_their_layers_are_frozen() -> None:
    model = adapters.add(plain(), asked("lora", dropout=0.5))
    config = compose(["freeze=lora"])
    freeze.apply(model.net, freeze.plan(model, config.freeze_strategy, 1).phases[0], "follow")
    model.net.train()
    dropouts = [module for module in model.net.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == len(adapters.layers(plain()))
    assert all(module.training for module in dropouts)


def test_without_peft_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"adapter.kind=lora needs the package peft: pip install 'fourfold\[adapters\]'"):
        adapters.add(plain(), asked("lora"))
