"""How far training moved a network: the weights of each block, and the features that come out of it.

Both hold the weights that a run ends with against those it began with, so what may change is copied once, at the start.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fourfold.entries import entries
from fourfold.loop import Kit, autocast
from fourfold.models.absent import Absent

if TYPE_CHECKING:
    from fourfold.models import TransferModel

SAMPLE = 128  # validation images; of one batch, since that is known to fit
LEAST = 8  # images that the unbiased estimate of the similarity of features makes sense of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What training did to one block."""

    block: str
    weights: float | None  # |w - w_0| / |w_0| over its parameters: 0 where frozen, None where w_0 = 0
    cka: float | None  # of its output before and after; 1: the same features but for rotation and scale; None: not measured


@dataclass(frozen=True)
class Sample:
    """What a network is asked before and after."""

    net: nn.Module  # the network, or what lies behind its frozen prefix
    inputs: tuple[Tensor, ...]  # as it takes them: normalised images, or what the prefix has made of them, [N, ...] each
    frozen: tuple[str, ...] = ()  # modules that are left out, since their answers cannot have changed


def snapshot(net: nn.Module, learned: Set[str], unmoved: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Copies, on the CPU, of all that may change: the parameters that ever learn, and the buffers but those that never do."""
    moving = (each for each in entries(net) if each.name in learned or (each.is_buffer and each.name not in unmoved))
    return {each.name: each.tensor.detach().to("cpu", copy=True) for each in moving}


@torch.no_grad()
def measure(model: "TransferModel", start: State, sample: Sample | None, kit: Kit) -> list[Change]:
    """Hold a trained network against its start, block by block, input side first, the head last.

    Args:
        model: With the weights of the end, which it has again when this returns. Blocks that saw nothing move are not run.
        start: What `snapshot` copied.
        sample: Always of the same images; None, or too few: only weights are compared.
        kit: Of the run.
    """
    net = model.net
    consists = [*entries(net)]
    now = {each.name: each.tensor for each in consists}
    params = {block.name: block.params for block in model.blocks}
    inside = {name for names in params.values() for name in names}
    heads = tuple(f"{head}." for head in model.heads)
    still = all(torch.equal(now[name].cpu(), value) for name, value in start.items() if not name.startswith(heads))
    alike: Mapping[str, float | None] = dict.fromkeys(params)
    if still:
        alike = dict.fromkeys(params, 1.0)
    elif sample is not None and len(sample.inputs[0]) >= LEAST:
        alike = _similarities(net, start, [*params], sample, kit)
    params["head"] = tuple(each.name for each in consists if not each.is_buffer and each.name not in inside)
    return [Change(name, _relative(names, now, start), alike.get(name)) for name, names in params.items()]


def cka(first: Tensor, second: Tensor) -> float | None:
    """Centred kernel alignment of two linear kernels, by the unbiased estimator of HSIC.

    Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv 1905.00414, eq. 3, with the estimator
    of Song et al. 2012 (JMLR 13:1393-1434, eq. 5), which few images in many dimensions do not push towards 1.

    Args:
        first, second: Kernel matrices [N, N] of the same N >= 4 images.

    Returns:
        About 0 for unrelated features, 1 for equal ones; None where one of them is the same for all images.
    """
    both, one, two = _hsic(first, second), _hsic(first, first), _hsic(second, second)
    return both / (one * two) ** 0.5 if one > 0 and two > 0 else None


def _hsic(k: Tensor, m: Tensor) -> float:
    n = len(k)
    k, m = (kernel.double() - torch.diag(kernel.double().diagonal()) for kernel in (k, m))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return float(total) / (n * (n - 3))


def _relative(names: Sequence[str], now: State, start: State) -> float | None:
    if not any(name in start for name in names):  # frozen: as many numbers as a network has need not be added up
        return 0.0 if any(_not_zero(now[name]) for name in names) else None
    moved = sum(float((now[name].cpu().double() - start[name].double()).square().sum()) for name in names if name in start)
    size = sum(float((start[name] if name in start else now[name]).double().square().sum()) for name in names)
    return (moved / size) ** 0.5 if size else None


def _not_zero(tensor: Tensor) -> bool:
    return bool(tensor.flatten()[:1].any()) or bool(tensor.any())  # the first number nearly always says it


def _similarities(net: nn.Module, start: State, blocks: list[str], sample: Sample, kit: Kit) -> dict[str, float | None]:
    end = {name: value.clone() for name, value in net.state_dict().items() if name in start}
    training = net.training
    net.eval()
    try:
        after = _kernels(net, blocks, sample, kit)
        net.load_state_dict(start, strict=False)
        before = _kernels(net, blocks, sample, kit)
    finally:
        net.load_state_dict(end, strict=False)
        net.train(training)
    left_out = tuple(f"{module}." for module in sample.frozen)
    same: dict[str, float | None] = {block: 1.0 for block in blocks if f"{block}.".startswith(left_out)}
    return same | {name: cka(before[name], after[name]) for name in before.keys() & after.keys()}


def _kernels(net: nn.Module, blocks: list[str], sample: Sample, kit: Kit) -> dict[str, Tensor]:
    """Of the output of each block that is a module: centred features [N, D], D of all places together, times themselves."""
    kernels: dict[str, Tensor] = {}
    with _listening(net, blocks, kernels, len(sample.inputs[0])), autocast(kit):
        sample.net(*sample.inputs)
    return kernels


@contextmanager
def _listening(net: nn.Module, blocks: list[str], kernels: dict[str, Tensor], images: int) -> Iterator[None]:
    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, list | tuple) else output
            if isinstance(value, Absent):  # of what is left out
                return
            if isinstance(value, Tensor) and value.is_floating_point() and len(value) == images:
                flat = value.float().reshape(images, -1)  # [N, ...] -> [N, D]
                flat = flat - flat.mean(dim=0)
                # three digits are too few for sums over so many; oneDNN also divides by zero on [24, 65536] (PyTorch 2.14)
                with torch.autocast(flat.device.type, enabled=False):
                    kernels[name] = (flat @ flat.T).cpu()

        return hook

    modules = dict(net.named_modules())
    handles = [modules[name].register_forward_hook(listen(name)) for name in blocks if name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
