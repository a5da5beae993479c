"""Where a network is cut in two, by names: what is stored of the part before, and how the part behind trains on it.

The suffix is the network's own forward pass on absent images: frozen modules return absent tensors instead of computing, and
stored activations are put in where they were taken.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fourfold.models.absent import Absent, Site, absent, mapped, tensors_in, to_meta
from fourfold.models.trace import evaluating


class NoFrontier(Exception):
    """There is nothing to store for this network and what learns of it; the message says why in one line."""


class _Complete(BaseException):
    """Everything that was asked for has been seen. Not an `Exception`, which a network's own code might catch."""


@dataclass(frozen=True)
class Slot:
    """One stored activation."""

    sites: tuple[Site, ...]  # all the places of this one tensor; it is taken at the first
    shape: tuple[int, ...]  # for one image
    dtype: torch.dtype
    order: tuple[int, ...]  # its dimensions by falling stride: kernels, and so last digits, depend on it

    def copy(self, activation: Tensor) -> Tensor:
        """A copy in the memory layout in which it was taken, which the network may change in place."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return activation.permute(self.order).clone(memory_format=torch.contiguous_format).permute(inverse)


@dataclass(frozen=True)
class Cut:
    """Where a network is cut, by names alone, so that it holds for every copy of the network (its moving average, say)."""

    slots: tuple[Slot, ...]
    frozen: tuple[str, ...]  # modules that the suffix leaves out
    head: str | None  # the module whose answer to the one stored activation is the network's answer
    image: tuple[int, ...]  # shape of one image

    def at(self, entering: bool) -> dict[str, dict[int, dict[int, int]]]:
        """module -> call -> leaf -> slot, of what modules are given or return."""
        found: dict[str, dict[int, dict[int, int]]] = {}
        for i, slot in enumerate(self.slots):
            for site in slot.sites:
                if site.entering == entering:
                    found.setdefault(site.module, {}).setdefault(site.call, {})[site.leaf] = i
        return found


class Suffix(nn.Module):
    """What lies behind the frontier. Its only child is the network itself, which decides modes, parameters and state."""

    def __init__(self, net: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.net = net
        self.cut = cut
        self._given = [(net.get_submodule(name), calls) for name, calls in cut.at(entering=True).items()]
        returned = cut.at(entering=False)
        self._frozen = [(net.get_submodule(name), returned.get(name, {})) for name in cut.frozen]
        self._shapes: dict[tuple[int, int, int], Any] = {}  # what a frozen module returns, by its index, call and batch size

    def forward(self, *activations: Tensor) -> Any:
        """What the network answers to the images whose activations, each [N, ...], are given. They are left unchanged."""
        stored = [slot.copy(activation) for slot, activation in zip(self.cut.slots, activations, strict=True)]
        if self.cut.head is not None:
            return self.net.get_submodule(self.cut.head)(stored[0])
        images = absent(torch.empty((len(stored[0]), *self.cut.image), device="meta"), stored[0].device)
        with self._replaying(stored):
            output = self.net(images)
        if any(isinstance(tensor, Absent) for tensor in tensors_in(output)):
            raise RuntimeError(f"the output depends on frozen activations that are not stored ({place_of(self.cut)})")
        return output

    def train(self, mode: bool = True) -> Self:
        """Of a network of which only the head runs, only the head changes its mode: the others may be thousands of modules."""
        if self.cut.head is None:
            return super().train(mode)
        self.training = mode
        self.net.get_submodule(self.cut.head).train(mode)
        return self

    @contextmanager
    def _replaying(self, stored: list[Tensor]) -> Iterator[None]:
        hooks = [module.register_forward_pre_hook(_putting(calls, stored), with_kwargs=True) for module, calls in self._given]
        own = [module.__dict__.get("forward") for module, _ in self._frozen]
        for i, (module, calls) in enumerate(self._frozen):
            module.__dict__["forward"] = self._leaving_out(i, module.forward, calls, stored)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for (module, _), forward in zip(self._frozen, own, strict=True):
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward

    def _leaving_out(
        self, index: int, forward: Callable[..., Any], calls: Mapping[int, Mapping[int, int]], stored: list[Tensor]
    ) -> Callable[..., Any]:
        count = itertools.count()

        def answer(*args: Any, **kwargs: Any) -> Any:
            call = next(count)
            key = (index, call, len(stored[0]))
            if key not in self._shapes:
                place = stored[0].device
                args, kwargs = mapped(lambda tensor: absent(to_meta(tensor), place), (args, kwargs))
                self._shapes[key] = forward(*args, **kwargs)
            return _put(self._shapes[key], calls.get(call, {}), stored)

        return answer


class Split:
    """A network in two: `prefix` once per image, then `suffix` in every epoch."""

    def __init__(self, net: nn.Module, cut: Cut) -> None:
        self.cut = cut
        self.suffix = Suffix(net, cut)
        self.name = place_of(cut)
        self.deviation = 0.0  # largest difference from the uncut network that was seen; 0 where they agree to the bit

    def prefix(self, images: Tensor) -> tuple[Tensor, ...]:
        """Activations of images [N, C, H, W], each [N, ...] and detached. Changes nothing and draws nothing.

        Under autocast they have the type that the network computes in.
        """
        with evaluating(self.suffix.net), torch.no_grad():
            return taken(self.suffix.net, images, self._sites)

    def whole(self, images: Tensor) -> tuple[tuple[Tensor, ...], Any, Any]:
        """Likewise; then what the whole network answers to the images, and the suffix to the activations, both in eval mode.

        Worth its while where little lies behind the frontier.
        """
        with evaluating(self.suffix.net), torch.no_grad():
            with looking(self.suffix.net, self._sites) as found:
                answer = self.suffix.net(images)
            activations = _complete(found, self._sites)
            return activations, answer, self.suffix(*activations)

    @property
    def _sites(self) -> list[Site]:
        return [slot.sites[0] for slot in self.cut.slots]

    def suffix_of(self, net: nn.Module) -> Suffix:
        """The suffix of a copy of the network, such as its moving average. It must be frozen alike."""
        return Suffix(net, self.cut)


def taken(net: nn.Module, images: Tensor, sites: list[Site]) -> tuple[Tensor, ...]:
    """Copies of the tensors at `sites`, from one forward pass in the modes that `net` is in, ended when all have been seen."""
    with looking(net, sites, stop=True) as found, suppress(_Complete):
        net(images)
    return _complete(found, sites)


@contextmanager
def looking(net: nn.Module, sites: list[Site], *, stop: bool = False) -> Iterator[dict[Site, Tensor]]:
    """Copies of the tensors at `sites`, while `net` runs once; with `stop`, its pass ends with `_Complete` at the last one."""
    found: dict[Site, Tensor] = {}
    counts: Counter[tuple[str, bool]] = Counter()

    def look(name: str, entering: bool, value: Any) -> None:
        call = counts[name, entering]
        counts[name, entering] += 1
        for site in sites:
            if (site.module, site.call, site.entering) == (name, call, entering):
                found[site] = tensors_in(value)[site.leaf].detach().clone()
        if stop and len(found) == len(sites):
            raise _Complete

    hooks: list[Any] = []
    for name in {site.module for site in sites}:
        module = net.get_submodule(name)
        before = lambda module, args, kwargs, name=name: look(name, True, (args, kwargs))  # noqa: E731
        after = lambda module, args, output, name=name: look(name, False, output)  # noqa: E731
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _complete(found: Mapping[Site, Tensor], sites: list[Site]) -> tuple[Tensor, ...]:
    if len(found) < len(sites):
        raise NoFrontier("its forward pass is another one in eval mode than in train mode")
    return tuple(found[site] for site in sites)


def _putting(calls: Mapping[int, Mapping[int, int]], stored: list[Tensor]) -> Callable[..., Any]:
    count = itertools.count()

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        slots = calls.get(next(count))
        return None if slots is None else _put((args, kwargs), slots, stored)

    return hook


def _put(value: Any, slots: Mapping[int, int], stored: list[Tensor]) -> Any:
    """`value` with stored activations in the place of some of its tensors (index of the tensor -> slot)."""
    count = itertools.count()

    def choose(tensor: Tensor) -> Tensor:
        slot = slots.get(next(count))
        return tensor if slot is None else stored[slot]

    return mapped(choose, value)


def place_of(cut: Cut) -> str:
    places = list(dict.fromkeys(str(slot.sites[0]) for slot in cut.slots))
    return " and ".join(places if len(places) < 4 else [*places[:2], f"{len(places) - 2} more places"])
