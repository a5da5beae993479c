"""Models: any network from any source, with a new head that is proven to be used, cut into blocks."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fourfold.config import FreezeConfig, ModelConfig
from fourfold.models import adapters, blocks, heads, preprocessing, sources, stem, stochnorm, weights
from fourfold.models.adapters import merged
from fourfold.models.blocks import Block
from fourfold.models.preprocessing import Preprocessing
from fourfold.models.summary import Row, describe, outputs
from fourfold.models.trace import dummy_images
from fourfold.models.weights import WeightsReport

__all__ = [
    "Block",
    "Preprocessing",
    "Row",
    "TransferModel",
    "WeightsReport",
    "adapt",
    "create",
    "describe",
    "merged",
    "outputs",
]


@dataclass
class TransferModel:
    """A network ready for transfer."""

    net: nn.Module
    heads: tuple[str, ...]  # module names of the new head; several in distilled models
    blocks: tuple[Block, ...]  # everything else, input side first
    preprocessing: Preprocessing
    weights: WeightsReport
    adapters: frozenset[str] = frozenset()  # parameters of `adapt`, each in its layer's block
    source_head: nn.Module | None = None  # what stood in the head's place, if it was asked for; None: not known


def create(
    config: ModelConfig,
    num_outputs: int,
    *,
    in_chans: int = 3,
    pretrained: bool = True,
    source_head: bool = False,
    proven: tuple[str, ...] | None = None,
) -> TransferModel:
    """Build the network, give it a new head and prove with a real forward pass that the head decides the output.

    Draws torch's global generator for the initial weights, the same amount in every call with the same arguments: for the head,
    and for what no weights are going to fill. Touches the
    network where pretrained weights have to be fetched.

    Args:
        num_outputs: width of the new head.
        in_chans: channels of the images; the first convolution is adapted to it.
        pretrained: false gives random weights, whatever `config.weights` says.
        source_head: keep the layer that the weights were trained with in the head's place, where there is one and only one; of
            random weights, one like it.
        proven: the heads that this function has found and proven with the same arguments in this process, which differs in
            nothing but random numbers.

    Raises:
        ConfigError: an unknown name, weights that cannot be had or do not fit, or a network whose head cannot be replaced.
    """
    begin = weights.start(config, pretrained)
    filled = isinstance(begin, Path) and not config.partial_weights
    built = sources.build(config, None if isinstance(begin, Path) else begin, num_outputs, in_chans, filled)
    net = built.net
    if not built.channelled:
        stem.adapt(net, in_chans)
    prepared = preprocessing.override(built.preprocessing, config, in_chans)
    images = dummy_images(net, in_chans, prepared.size)
    before = dict(net.named_modules())
    names = built.heads or proven or (heads.find(net, images),)
    if not (built.heads or built.sized):
        heads.replace(net, names[0], num_outputs)
    report = WeightsReport(built.origin)
    if isinstance(begin, Path):
        report = weights.load(net, begin, names, config.partial_weights)
    if names != proven:
        heads.prove(net, names, num_outputs, images)
    kept = _source_head(net, names, begin, built.source_head or before[names[0]]) if source_head else None
    return TransferModel(net, names, blocks.split(net, names), prepared, report, source_head=kept)


def _source_head(net: nn.Module, names: tuple[str, ...], begin: str | Path | None, before: nn.Module) -> nn.Module | None:
    """The layer that the starting weights were trained with in the head's place; `before` stood there when they were read."""
    if len(names) > 1:
        return None
    if isinstance(begin, Path):
        return weights.head(begin, names[0])
    new = net.get_submodule(names[0])
    if before is new:  # the source was told the number of outputs
        return copy.deepcopy(new) if begin is None else None
    return before if isinstance(before, nn.Linear | nn.Conv2d) else None


def adapt(model: TransferModel, config: FreezeConfig) -> TransferModel:
    """Change the network as its strategy asks for, before anything is frozen: adapters, or norms of another kind.

    Raises:
        ConfigError: the network has no layer for it, or a package is missing.
    """
    if config.norm_stats == "stochastic":
        stochnorm.replace(model)
    return adapters.add(model, config.adapter)
