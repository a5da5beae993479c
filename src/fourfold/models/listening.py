"""What modules of a network are given and put out, heard while it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Hear = Callable[[Any, Any], Tensor]  # (what a module was given, what it put out) -> what is heard


def listen(net: nn.Module, what: dict[str, Hear], *, always: bool = False) -> dict[str, Tensor]:
    """A dict of what the named modules were given or put out last, such as `{"head": entering}`.

    Args:
        always: Also while no gradient is wanted; else validation and testing cost nothing.
    """
    heard: dict[str, Tensor] = {}

    def note(name: str, hear: Hear) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if always or torch.is_grad_enabled():
                heard[name] = hear(args, output)

        return hook

    for name, hear in what.items():
        net.get_submodule(name).register_forward_hook(note(name, hear))
    return heard


def entering(args: Any, output: Any) -> Any:
    """What a module was given."""
    return args[0]


def leaving(args: Any, output: Any) -> Any:
    """What a module put out."""
    return output


def pooled(features: Tensor) -> Tensor:
    """Features that enter a head as [N, D]: maps [N, D, H, W] are averaged over their positions."""
    return features if features.ndim == 2 else features.flatten(2).mean(2)
