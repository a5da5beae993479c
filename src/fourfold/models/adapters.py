"""Adapters: new weights beside each frozen layer, through the peft library; and the plain network that they amount to."""

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fourfold.config import AdapterConfig, ConfigError
from fourfold.models.blocks import Block
from fourfold.models.summary import outputs
from fourfold.models.trace import dummy_images, evaluating, forward

if TYPE_CHECKING:
    from fourfold.models import TransferModel

AGREE = 1e-3  # of the largest logit: what rounding makes of one matrix product instead of three, over the depth of a network
INSIDE = ".base_layer"  # where peft keeps the layer that it wraps


class NotMerged(RuntimeError):
    """The merged network answers otherwise than the one with adapters: its weights cannot be trusted."""


def add(model: "TransferModel", config: AdapterConfig) -> "TransferModel":
    """Put an adapter beside every linear layer and every ungrouped convolution that the network calls, but its heads.

    What a network reads the weights of without calling it stays as it is: the attention of torchvision's transformers
    (`nn.MultiheadAttention`), say. Changes the network in place: a layer's own weights are found under `.base_layer` then.
    Draws torch's global generator, after the head was drawn.

    Returns:
        The model with its blocks named anew, each with its adapters; the model as it is where `config.kind` is none.

    Raises:
        ConfigError: peft is not there, or it refuses, or there is no layer to adapt.
    """
    if config.kind == "none":
        return model
    targets = layers(model)
    if not targets:
        raise ConfigError(
            f"freeze_strategy.adapter.kind={config.kind} finds no linear layer or convolution beside the head: choose another "
            "model, or freeze=full"
        )
    before = {name for name, _ in model.net.named_parameters()}
    _inject(model.net, targets, config)
    names = [name for name, _ in model.net.named_parameters()]
    adapters = frozenset(name for name in names if name.replace(INSIDE, "") not in before)
    for module in model.net.modules():  # frozen or not, a dropout goes with what stands before it: let that be the adapter
        if "lora_dropout" in module._modules:
            module._modules["lora_dropout"] = module._modules.pop("lora_dropout")
    blocks = tuple(_with_adapters(block, names, adapters, targets) for block in model.blocks)
    return replace(model, blocks=blocks, adapters=adapters)


def layers(model: "TransferModel") -> tuple[str, ...]:
    """Names of the layers that get an adapter."""
    called = outputs(model)
    return tuple(
        name
        for name, module in model.net.named_modules()
        if name in called
        and name not in model.heads
        and (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
    )


def merged(model: "TransferModel") -> dict[str, Tensor]:
    """The state dict of the plain network: W + (alpha / r) B A in the place of W, for each layer. `model` stays as it is.

    Raises:
        NotMerged: it gives other logits than the network with adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    net = copy.deepcopy(model.net)
    for name, module in list(net.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            net.set_submodule(name, module.get_base_layer())
    images = dummy_images(model.net, len(model.preprocessing.mean), model.preprocessing.size)
    with torch.no_grad(), evaluating(model.net), evaluating(net):
        beside, plain = forward(model.net, images), forward(net, images)
    off = float((beside - plain).abs().max())
    if not off <= AGREE * float(beside.abs().max().clamp(min=1e-6)):
        raise NotMerged(
            f"with adapters merged into its weights the network's logits differ by {off:.3g}: best.pt holds them unmerged; "
            "please report the model and the strategy"
        )
    return net.state_dict()


def _inject(net: nn.Module, targets: tuple[str, ...], config: AdapterConfig) -> None:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"freeze_strategy.adapter.kind={config.kind} needs the package peft: pip install 'fourfold[adapters]'"
        ) from error
    rank, alpha, dropout = config.rank, config.alpha, config.dropout
    kinds: dict[str, Callable[..., Any]] = {
        "lora": lambda **where: peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, **where),
        "dora": lambda **where: peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            use_dora=True,
            **where,
        ),
        "loha": lambda **where: peft.LoHaConfig(r=rank, alpha=alpha, **where),
        "lokr": lambda **where: peft.LoKrConfig(r=rank, alpha=alpha, **where),
        "ia3": lambda **where: peft.IA3Config(feedforward_modules=[], **where),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a network is none of the language models that peft knows
        try:
            peft.inject_adapter_in_model(kinds[config.kind](target_modules="|".join(map(re.escape, targets))), net)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ConfigError(
                f"freeze_strategy.adapter.kind={config.kind} with rank={rank} does not fit {type(net).__name__} ({error}): "
                "choose lora, or another rank"
            ) from error


def _with_adapters(block: Block, names: list[str], adapters: frozenset[str], targets: tuple[str, ...]) -> Block:
    """The block under its parameters' new names, with the adapters of its layers."""
    own = set(block.params)
    adapted = tuple(f"{target}." for target in targets if own & {f"{target}.weight", f"{target}.bias"})
    mine = ((name in adapters and name.startswith(adapted)) or name.replace(INSIDE, "") in own for name in names)
    return Block(block.name, tuple(name for name, is_mine in zip(names, mine, strict=True) if is_mine))
