"""One forward pass on a dummy batch: what a network calls, in which order, and what comes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourfold.config import ConfigError

TINY = 1e-4  # by which probabilities may add up to something else than 1


@dataclass(frozen=True)
class Trace:
    """What happened: every call that returned one tensor, as (module name, output shape), in order of return."""

    output: Tensor
    calls: tuple[tuple[str, tuple[int, ...]], ...]


def dummy_images(net: nn.Module, in_chans: int, size: int) -> Tensor:
    """Two images of noise, float32 [2, in_chans, size, size], where `net` is. Leaves the global generators alone."""
    images = torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(0))
    first = next(net.parameters(), images)
    return images.to(first.device)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put `net` in eval mode and give every module its own mode back. Leaves the global generators alone."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def forward(net: nn.Module, images: Tensor) -> Tensor:
    """The network's answer to `images`.

    Raises:
        ConfigError: the network refuses such images, or answers with something else than logits [N, outputs].
    """
    channels, size = images.shape[1:3]
    try:
        output = net(images)
    except Exception as error:  # a foreign network may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"the model refuses images of {size} x {size} pixels and {channels} channels ({reason}): "
            "set model.image_size and dataset.in_chans to what it takes"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != images.shape[0]:
        seen = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"the model answers two images with {seen}: it has to return one tensor [2, outputs]")
    if _adds_up(output):
        raise ConfigError(
            "the model answers with probabilities, which add up to 1, but losses take logits: leave the softmax out of forward"
        )
    return output


def _adds_up(output: Tensor) -> bool:
    if output.shape[1] < 2 or output.is_meta:
        return False
    return bool((output >= 0).all()) and bool(((output.sum(dim=1) - 1).abs() < TINY).all())


def trace(net: nn.Module, images: Tensor) -> Trace:
    """Run `net` once on `images` in eval mode, without gradients, and note every call. Changes nothing in `net`."""
    names = {module: name for name, module in net.named_modules()}
    calls: list[tuple[str, tuple[int, ...]]] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            calls.append((names[module], tuple(output.shape)))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with evaluating(net), torch.no_grad():
            output = forward(net, images)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(output, tuple(calls))
