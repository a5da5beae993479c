"""A frozen network on a CPU with its batch norms folded into the convolutions before them, and its images channels last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from fourfold.models.absent import tensors_in
from fourfold.models.cut import Split

SAMPLE = 2  # images on which it is tried
TOLERANCE = 1e-4  # of the largest value; a product of folded numbers is rounded otherwise, by 1e-6 or so
FAILURES = (RuntimeError, AssertionError)  # another way, or a view of what is no longer contiguous, say

Answer = TypeVar("Answer")
_Folded = tuple[Tensor, Tensor]  # weight and bias of a convolution
_ASKING = {Tensor.dim, Tensor.size, Tensor.__len__}  # of a tensor's shape, which folding does not change
_ASKING_FOR = {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")}


class Fused:
    """What a network answers to images, with the rounding of other kernels, in four to nine tenths of its time.

    What is folded is found by following the first batch: each `torch.conv2d` whose answer only a `batch_norm` with fixed
    statistics takes. Where the answers to that batch's first images are not the same to `TOLERANCE`, where a layer cannot work
    channels last, or where another batch takes another way through the network, `forward` answers as it is.

    It is of one `forward` alone, or of those of copies of a network, whose weights do not change. It holds the folded weights.
    """

    def __init__(self) -> None:
        self._route: _Route | None = None
        self._tried = False

    @torch.no_grad()
    def __call__(self, forward: Callable[[Tensor], Answer], images: Tensor) -> Answer:
        """The answer, tensors in tuples, lists or dicts, without gradients.

        Args:
            forward: Of the network.
            images: Normalised, float32 [N, C, H, W] on the CPU.
        """
        if not self._tried:
            self._route, self._tried = _found(forward, images[:SAMPLE]), True
        if self._route is not None:
            try:
                return _faster(forward, images, self._route)
            except FAILURES:
                self._route = None
        return forward(images)


class FusedPrefix(nn.Module):
    """A network that trains on images, its frozen prefix fused: for images that differ from epoch to epoch."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.suffix = split.suffix
        self._prefix = split.prefix
        self._fused = Fused()

    def forward(self, images: Tensor) -> Any:
        """As the network, whose suffix alone learns."""
        return self.suffix(*self._fused(self._prefix, images))


def _faster(forward: Callable[[Tensor], Answer], images: Tensor, route: "_Route") -> Answer:
    images = images.contiguous(memory_format=torch.channels_last)
    with _Following(route) as following:
        answer = forward(images)
    following.end()
    return answer


def _found(forward: Callable[[Tensor], Any], images: Tensor) -> "_Route | None":
    with _Recording() as calls:
        answer = forward(images)
    route = _route(calls.made, tensors_in(answer))
    if route is None:
        return None
    try:
        other = _faster(forward, images, route)
    except FAILURES:
        return None
    same = all(_close(a, b) for a, b in zip(tensors_in(answer), tensors_in(other), strict=True))
    return route if same else None


@dataclass(frozen=True)
class _Call:
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Any  # kept, so that no other tensor gets its identity


@dataclass(frozen=True)
class _Route:
    """The functions that a pass calls, in their order, and which of them it may do without."""

    funcs: list[Callable[..., Any]]
    convolutions: dict[int, _Folded]
    norms: dict[int, int]  # whose work is done: by which convolution


class _Unlike(RuntimeError):
    """This pass calls other functions than the one that was followed, or gives a norm something else."""


class _Recording(TorchFunctionMode):
    """Notes every function that is called with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        self.made.append(_Call(func, args, kwargs or {}, answer))
        return answer


class _Following(TorchFunctionMode):
    """Takes a route again, with what was folded."""

    def __init__(self, route: _Route) -> None:
        super().__init__()
        self._route, self._at = route, -1
        self._answers: dict[int, Tensor] = {}  # of the folded convolutions, until their norms come

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._at += 1
        if self._at >= len(self._route.funcs) or func != self._route.funcs[self._at]:
            raise _Unlike
        if self._at in self._route.norms:
            given, *_ = _norm_of(*args, **(kwargs or {}))
            if given is not self._answers.pop(self._route.norms[self._at]):
                raise _Unlike
            return given
        if self._at in self._route.convolutions:
            images, _, _, *settings = _convolution_of(*args, **(kwargs or {}))
            answer = torch.conv2d(images, *self._route.convolutions[self._at], *settings)
            self._answers[self._at] = answer
            return answer
        return func(*args, **(kwargs or {}))

    def end(self) -> None:
        """See that the whole route was taken."""
        if self._at + 1 < len(self._route.funcs):
            raise _Unlike


def _route(calls: list[_Call], answer: list[Tensor]) -> _Route | None:
    """What may be folded; None where nothing is convolved."""
    takers: dict[int, list[int]] = {id(tensor): [-1] for tensor in answer}
    for at, call in enumerate(calls):
        if call.func not in _ASKING and call.func not in _ASKING_FOR:
            for tensor in tensors_in((call.args, call.kwargs)):
                takers.setdefault(id(tensor), []).append(at)
    convolutions: dict[int, _Folded] = {}
    norms: dict[int, int] = {}
    some = False
    for at, call in enumerate(calls):
        if call.func != torch.conv2d:
            continue
        some = True
        taken_by = takers.get(id(call.answer), [])
        norm = calls[taken_by[0]] if len(taken_by) == 1 and taken_by[0] >= 0 else None
        if norm is None or norm.func != functional.batch_norm:
            continue
        taken, mean, var, scale, shift, training, _, eps = _norm_of(*norm.args, **norm.kwargs)
        _, weight, bias, *_ = _convolution_of(*call.args, **call.kwargs)
        if taken is call.answer and not training and mean is not None and weight.dtype == torch.float32:
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, eps, scale, shift)
            convolutions[at] = (weight.detach().contiguous(memory_format=torch.channels_last), bias.detach())
            norms[taken_by[0]] = at
    return _Route([call.func for call in calls], convolutions, norms) if some else None


def _convolution_of(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Any, ...]:
    """The arguments of `torch.conv2d`, in their order."""
    return input, weight, bias, stride, padding, dilation, groups


def _norm_of(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    """The arguments of `torch.nn.functional.batch_norm`, in their order."""
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool((a.double() - b.double()).abs().max() <= TOLERANCE * a.double().abs().max())
