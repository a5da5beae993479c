"""Whether a network that was cut in two is still the same network: its logits, gradients and statistics, tried on images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.models.absent import tensors_in
from fourfold.models.cut import NoFrontier, Split, taken
from fourfold.seeding import rng_state, set_rng_state

# Largest difference from the uncut network, as a share of the largest value. Kernels may differ between batch sizes, and on
# a GPU between calls; anything that is wrong is off by far more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


def tried(net: nn.Module, found: Split, images: Tensor) -> float:
    """Show that the two parts are the network; returns the largest difference.

    The prefix has to draw no random numbers, to repeat itself, and to answer to each image without regard to the others. The
    two parts have to give the network's logits in eval mode, there with another batch size too, and in train mode its
    logits, its gradients and its moving statistics.

    Raises:
        NoFrontier: one of these is not so.
    """
    sites = [slot.sites[0] for slot in found.cut.slots]
    net.eval()
    with torch.no_grad():
        before = drawn(images)
        activations = taken(net, images, sites)
        if any(not torch.equal(a, b) for a, b in zip(before, drawn(images), strict=True)):
            raise NoFrontier(f"its frozen part draws random numbers {found.name}")
        worst = _compare(found.prefix(images), activations, f"its frozen part does not repeat itself {found.name}")
        if any(len(activation) != len(images) for activation in activations):
            raise NoFrontier(f"the images are not the first dimension of its activations {found.name}")
        fewer = tuple(activation[:-1] for activation in activations)
        _compare(found.prefix(images[:-1]), fewer, f"its frozen part mixes the images of a batch {found.name}")
        wrong = f"a cut {found.name} would change its numbers"
        with _telling(wrong):
            worst = max(worst, _compare(_same_dice(found.suffix, *activations), _same_dice(net, images), wrong))
            _compare(_same_dice(found.suffix, *fewer), _same_dice(net, images[:-1]), wrong)
    net.train()
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with _telling(wrong):
        buffers = [buffer.clone() for buffer in net.buffers()]
        want = _pass(net, (images,), learning)
        with torch.no_grad():
            for buffer, value in zip(net.buffers(), buffers, strict=True):
                buffer.copy_(value)
        return max(worst, _compare(_pass(found.suffix, activations, learning), want, wrong))


def _same_dice(net: nn.Module, *inputs: Tensor) -> Tensor:
    """The answer of `net`; every call draws the same random numbers."""
    state = rng_state()
    try:
        return net(*inputs)
    finally:
        set_rng_state(state)


def _pass(net: nn.Module, inputs: tuple[Tensor, ...], learning: list[nn.Parameter]) -> tuple[Tensor, ...]:
    """Logits, gradients of a loss on them, and the statistics afterwards."""
    logits = _same_dice(net, *inputs)
    gradients = torch.autograd.grad(logits.float().square().sum(), learning, allow_unused=True)
    used = (torch.zeros(()) if gradient is None else gradient for gradient in gradients)
    return (logits.detach(), *used, *(buffer.clone() for buffer in net.buffers()))


def _compare(got: Any, want: Any, wrong: str) -> float:
    """The largest difference, as a share of the largest value of its tensor.

    Raises:
        NoFrontier: saying what is wrong, where it is above the tolerance.
    """
    worst = 0.0
    for a, b in zip(tensors_in(got), tensors_in(want), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise NoFrontier(f"{wrong} ({list(a.shape)} {a.dtype} instead of {list(b.shape)} {b.dtype})")
        if torch.equal(a, b):
            continue
        off = float((a.double() - b.double()).abs().max() / b.double().abs().max())
        if not off <= TOLERANCE.get(a.dtype, 0.0):
            raise NoFrontier(f"{wrong} by {off:.2g} of the largest value")
        worst = max(worst, off)
    return worst


@contextmanager
def _telling(wrong: str) -> Iterator[None]:
    try:
        yield
    except NoFrontier:
        raise
    except Exception as error:  # what a foreign network makes of absent tensors
        raise NoFrontier(f"{wrong} ({first_line(error)})") from error


def drawn(images: Tensor) -> list[Tensor]:
    """States of the generators that the network may draw from."""
    on_gpu = [torch.cuda.get_rng_state(images.device)] if images.is_cuda else []
    return [torch.get_rng_state(), *on_gpu]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
