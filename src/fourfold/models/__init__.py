"""Models: any network from any source, with a new head that is proven to be used, cut into blocks."""

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


def create(config: ModelConfig, num_outputs: int, *, in_chans: int = 3, pretrained: bool = True) -> TransferModel:
    """Build the network, give it a new head and prove with a real forward pass that the head decides the output.

    Draws torch's global generator for the initial weights, the same amount in every call with the same arguments. Touches the
    network where pretrained weights have to be fetched.

    Args:
        num_outputs: width of the new head.
        in_chans: channels of the images; the first convolution is adapted to it.
        pretrained: false gives random weights, whatever `config.weights` says.

    Raises:
        ConfigError: an unknown name, weights that cannot be had or do not fit, or a network whose head cannot be replaced.
    """
    begin = weights.start(config, pretrained)
    built = sources.build(config, None if isinstance(begin, Path) else begin, num_outputs, in_chans)
    net = built.net
    stem.adapt(net, in_chans)
    prepared = preprocessing.override(built.preprocessing, config, in_chans)
    images = dummy_images(net, in_chans, prepared.size)
    if built.heads:
        names = built.heads
    elif built.sized:
        names = (heads.find(net, images),)
    else:
        names = heads.replace(net, num_outputs, images)
    report = WeightsReport(built.origin)
    if isinstance(begin, Path):
        report = weights.load(net, begin, names, config.partial_weights)
    heads.prove(net, names, num_outputs, images)
    return TransferModel(net, names, blocks.split(net, names), prepared, report)


def adapt(model: TransferModel, config: FreezeConfig) -> TransferModel:
    """Change the network as its strategy asks for, before anything is frozen: adapters, or norms of another kind.

    Raises:
        ConfigError: the network has no layer for it, or a package is missing.
    """
    if config.norm_stats == "stochastic":
        stochnorm.replace(model)
    return adapters.add(model, config.adapter)
