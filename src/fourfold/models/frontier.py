"""The frontier: where the frozen prefix of a network ends, and how what lies behind it trains on stored activations.

The network's forward pass is followed once with tensors that have shapes but no values (`Absent`). Every operation on them
is noted, and whether something took part in it that learns, moves (batch statistics) or draws random numbers. Where such an
operation takes a frozen activation, that activation, or what it is cheaply computed from, is stored: as a module is given
it, or as a frozen module returns it. There may be several: a skip connection around a cut is one more.

What was found is a `Cut`, by names; it is tried before it is believed (`exactness`).
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.models.absent import BATCH, Absent, Call, Node, Recording, Site, absent, nodes_of
from fourfold.models.cut import Cut, NoFrontier, Slot, Split, taken
from fourfold.models.exactness import drawn, first_line, tried
from fourfold.models.trace import evaluating
from fourfold.seeding import rng_state, set_rng_state

__all__ = ["NoFrontier", "Split", "split"]


class _Open(Exception):
    """This frozen module cannot be left out as a whole."""

    def __init__(self, module: str) -> None:
        self.module = module


def split(net: nn.Module, images: Tensor) -> Split:
    """Find the longest frozen prefix of `net` that can be left out exactly, and try it on `images`.

    What is frozen is read from `net` as `freeze.apply` left it: from `requires_grad`, from the statistics that a pass in
    train mode moves, and from the modules that draw random numbers in it. Call it again in each phase.

    Leaves the network, its statistics and modes, and all random generators as they were.

    Args:
        net: on its device; called as `net(images)`.
        images: two to four normalised images [N, C, H, W], where and in the layout in which the network will see them. Call
            this under the autocast that training will use.

    Raises:
        NoFrontier: nothing before the first layer that learns is frozen, or the cut cannot be shown to be exact.
    """
    if len(images) < 2:
        raise ValueError("one image cannot show whether the images of a batch are independent: give at least two")
    if "mask" in inspect.signature(net.forward).parameters:
        raise NoFrontier("it takes a mask beside the images, which would have to be stored with them")
    with _untouched(net):
        net.train()
        cut = _find(net, images, *_unsteady(net, images))
        found = Split(net, cut)
        found.deviation = tried(net, found, images)
    return found


@contextmanager
def _untouched(net: nn.Module) -> Iterator[None]:
    """Give the network its modes and buffers back afterwards, and every random generator its state."""
    modes = [(module, module.training) for module in net.modules()]
    owners = [(module, name, buffer) for module in net.modules() for name, buffer in module.named_buffers(recurse=False)]
    values = [buffer.clone() for _, _, buffer in owners]
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for (module, name, buffer), value in zip(owners, values, strict=True):
                setattr(module, name, buffer.copy_(value))


def _unsteady(net: nn.Module, images: Tensor) -> tuple[set[str], set[int]]:
    """Names of the modules whose own code draws random numbers in train mode, and ids of the buffers that it moves."""
    drawing: set[str] = set()
    stack: list[str] = []
    last = drawn(images)

    def look() -> None:
        nonlocal last
        now = drawn(images)
        if stack and any(not torch.equal(a, b) for a, b in zip(last, now, strict=True)):
            drawing.add(stack[-1])
        last = now

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            look()
            stack.append(name)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        look()
        stack.pop()

    before = {id(buffer): buffer.clone() for buffer in net.buffers()}
    hooks: list[Any] = []
    for name, module in net.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return drawing, {
        id(buffer) for buffer in net.buffers() if not torch.equal(buffer, before.get(id(buffer), buffer.new_empty(0)))
    }


def _find(net: nn.Module, images: Tensor, drawing: set[str], moving: set[int]) -> Cut:
    trace = Recording(drawing, moving)
    blank = absent(torch.empty((BATCH, *images.shape[1:]), dtype=images.dtype, device="meta"), images.device)
    blank.record = trace
    blank.node = Node((), (), tuple(blank.shape), live=False)
    try:
        with trace.listening(net), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            output = net(blank)
    except Exception as error:  # a foreign network may do anything with a tensor without values
        raise NoFrontier(f"its forward pass cannot be followed without values ({first_line(error)})") from error
    if not any(node is not None and node.live for node in nodes_of(output)):
        raise NoFrontier("nothing that learns takes part in its output, as far as it can be followed")
    frozen = _frozen_modules(net, trace, moving)
    while True:
        try:
            needed = _needed(net, trace, frozen)
            break
        except _Open as opened:
            frozen.discard(opened.module)
    if not any(_behind(node, frozen) for node in needed):
        raise NoFrontier(f"no frozen layer comes before the first that learns ({_first_live(net, trace, moving)})")
    called = [call for call in trace.calls if call.module in frozen]
    outermost = {call.module for call in called if not any(outer.module in frozen for outer in call.outer)}
    sites = [tuple(sorted(places, key=lambda site: (not site.entering, site.module, site.call))) for places in needed.values()]
    with evaluating(net), torch.no_grad():
        samples = taken(net, images, [places[0] for places in sites])
    slots = tuple(_slot(places, sample) for places, sample in zip(sites, samples, strict=True))
    return Cut(slots, tuple(sorted(outermost)), _head(trace, list(needed), output), tuple(images.shape[1:]))


def _frozen_modules(net: nn.Module, trace: Recording, moving: set[int]) -> set[str]:
    """Names of the modules with state that were only called with frozen values and gave back nothing else."""
    modules = dict(net.named_modules())
    returned: dict[str, list[Node | None]] = {}
    for call in trace.calls:
        returned.setdefault(call.module, []).extend(call.returned or [None])
    live = {id(modules[call.module]) for call in trace.calls if call.live}

    def is_frozen(name: str) -> bool:
        module = modules[name]
        state = [*module.parameters(), *module.buffers()]
        steady = not any(tensor.requires_grad or id(tensor) in moving for tensor in state)
        return (
            bool(state) and steady and not any(id(inner) in live for inner in module.modules()) and None not in returned[name]
        )

    return {name for name in returned if is_frozen(name)}


def _needed(net: nn.Module, trace: Recording, frozen: set[str]) -> dict[Node, set[Site]]:
    """The frozen values that have to be stored, and where each is put in.

    Raises:
        _Open: a value is used that a module in `frozen` does not return, or not with the images as its first dimension.
    """
    modules = dict(net.named_modules())
    hidden = {id(inner) for name in frozen for inner in modules[name].modules()}  # their calls cannot be counted in the suffix
    needed: dict[Node, set[Site]] = {}
    asked: set[tuple[Node, tuple[Call, ...]]] = set()  # branches that part and meet again make more paths than can be walked

    def need(node: Node, stack: tuple[Call, ...]) -> None:
        if (node, stack) in asked:
            return
        asked.add((node, stack))
        for call in stack:  # outermost first: what a block is given reaches all that it does
            site = call.site(node, entering=True)
            if site is not None and id(modules[call.module]) not in hidden:
                needed.setdefault(node, set()).add(site)
                return
        maker = next((call for call in node.stack if call.module in frozen), None)
        if maker is None:  # made by an operation outside of frozen layers, which the suffix repeats
            for source in node.sources:
                need(source, node.stack)
            return
        site = maker.site(node, entering=False)
        if site is None:
            raise _Open(maker.module)
        needed.setdefault(node, set()).add(site)

    for node, stack in trace.uses:
        need(node, stack)
    for node in reversed(list(needed)):  # a value that follows from the others without a frozen layer need not be stored
        rest = {other: sites for other, sites in needed.items() if other is not node}
        if node.sources and _follow(node.sources, node.stack, rest, frozen):
            needed = rest
    return needed


def _follow(nodes: Iterable[Node], stack: tuple[Call, ...], needed: Mapping[Node, set[Site]], frozen: set[str]) -> bool:
    """Whether these values, used in `stack`, follow from the needed ones without a frozen layer."""
    known: dict[tuple[Node, tuple[Call, ...]], bool] = {}

    def follows(node: Node, stack: tuple[Call, ...]) -> bool:
        if (node, stack) not in known:
            known[node, stack] = found(node, stack)
        return known[node, stack]

    def found(node: Node, stack: tuple[Call, ...]) -> bool:
        if any(call.module in frozen for call in stack):
            return False
        if node in needed:
            inside = {(call.module, call.index) for call in stack}
            return any(not site.entering or (site.module, site.call) in inside for site in needed[node])
        return bool(node.sources) and all(follows(source, node.stack) for source in node.sources)

    return all(follows(node, stack) for node in nodes)


def _behind(node: Node, frozen: set[str]) -> bool:
    """Whether a frozen layer took part in a value."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if any(call.module in frozen for call in node.stack):
            return True
        seen.add(node)
        waiting += [source for source in node.sources if source not in seen]
    return False


def _first_live(net: nn.Module, trace: Recording, moving: set[int]) -> str:
    own = (call.module for call in trace.calls if call.live)
    learning = {
        name
        for name, module in net.named_modules()
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensor.requires_grad or id(tensor) in moving
    }
    return next((name or "its own parameters" for name in own if name in learning), "its input")


def _head(trace: Recording, needed: list[Node], output: Any) -> str | None:
    """The module that turns the only stored value into the network's output, by one plain call."""
    if len(needed) != 1 or not isinstance(output, Absent):
        return None
    for call in trace.calls[1:]:
        if call.given == needed == call.given[:1] and call.returned == [output.node] and call.plain:
            return call.module
    return None


def _slot(sites: tuple[Site, ...], sample: Tensor) -> Slot:
    strides = sample.stride()
    order = tuple(sorted(range(sample.ndim), key=lambda i: -strides[i]))
    return Slot(sites, tuple(sample.shape[1:]), sample.dtype, order)
