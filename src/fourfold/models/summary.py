"""A model at a glance: its blocks and its head, their parameters, and the shape of what each puts out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fourfold.models.trace import dummy_images, trace

if TYPE_CHECKING:
    from fourfold.models import TransferModel


@dataclass(frozen=True)
class Row:
    """One block, or one head."""

    name: str
    params: tuple[str, ...]
    parameters: int  # numbers in `params`
    output: tuple[int, ...] | None  # shape for one image; None where no module of the block was called


def describe(model: "TransferModel") -> tuple[Row, ...]:
    """The blocks, input side first, then the heads. Runs the network once on a dummy batch; changes nothing."""
    net = model.net
    sizes = {name: param.numel() for name, param in net.named_parameters()}
    shapes = outputs(model)
    parts = [(block.name, block.params) for block in model.blocks]
    parts += [(head, tuple(name for name in sizes if name.startswith(f"{head}."))) for head in model.heads]
    return tuple(
        Row(name, params, sum(sizes[param] for param in params), _output(net, name, params, shapes)) for name, params in parts
    )


def outputs(model: "TransferModel") -> dict[str, tuple[int, ...]]:
    """Module -> shape of what its last call put out, for two images; of those that return one tensor. Changes nothing."""
    images = dummy_images(model.net, len(model.preprocessing.mean), model.preprocessing.size)
    return dict(trace(model.net, images).calls)


def _output(net: nn.Module, name: str, params: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """What the block's own module put out or, where it is never called as a whole, the last of its layers that was."""
    owners = {param.rpartition(".")[0] for param in params}
    candidates = [name] if name in shapes else [called for called in shapes if called in owners]
    return shapes[candidates[-1]][1:] if candidates else None
