"""The frontier: where the frozen prefix of a network ends, and how what lies behind it trains on stored activations.

The network's forward pass is followed once with tensors that have shapes but no values (`Absent`). Every operation on them
is noted, and whether something took part in it that learns, moves (batch statistics) or draws random numbers. Where such an
operation takes a frozen activation, that activation, or what it is cheaply computed from, is stored: as a module is given
it, or as a frozen module returns it. There may be several: a skip connection around a cut is one more.

The suffix is the network's own forward pass on absent images: frozen modules return absent tensors instead of computing,
stored activations are put in where they were taken, and whatever is computed from an absent tensor is absent. A value that
was never stored can therefore not be used unnoticed. Beyond that, what was found is tried before it is believed (`_try`).
"""

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.models.trace import evaluating
from fourfold.seeding import rng_state, set_rng_state

BATCH = 13  # of the followed pass: hardly the size of anything else, so that the batch dimension can be told from others
# Largest difference from the uncut network, as a share of the largest value. Kernels may differ between batch sizes, and on
# a GPU between calls; anything that is wrong is off by far more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
WHERE = (torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__, torch.Tensor.is_meta.__get__)  # type: ignore[attr-defined]


class NoFrontier(Exception):
    """There is nothing to store for this network and what learns of it; the message says why in one line."""


class _Complete(BaseException):
    """Everything that was asked for has been seen. Not an `Exception`, which a network's own code might catch."""


class _Open(Exception):
    """This frozen module cannot be left out as a whole."""

    def __init__(self, module: str) -> None:
        self.module = module


@dataclass(frozen=True)
class Site:
    """A tensor that a module is given or returns in one of its calls."""

    module: str  # as in `named_modules()`; "" is the network
    call: int  # the how-manieth call of this module in one forward pass
    entering: bool  # given, else returned
    leaf: int  # which of the tensors in its arguments, or in what it returns

    def __str__(self) -> str:
        return f"{'before' if self.entering else 'after'} {self.module or 'the network'}"


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
        images = _absent(torch.empty((len(stored[0]), *self.cut.image), device="meta"), stored[0].device)
        with self._replaying(stored):
            output = self.net(images)
        if any(isinstance(tensor, Absent) for tensor in _tensors(output)):
            raise RuntimeError(f"the output depends on frozen activations that are not stored ({_place(self.cut)})")
        return output

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
                args, kwargs = _map(lambda tensor: _absent(_to_meta(tensor), place), (args, kwargs))
                self._shapes[key] = forward(*args, **kwargs)
            return _put(self._shapes[key], calls.get(call, {}), stored)

        return answer


class Split:
    """A network in two: `prefix` once per image, then `suffix` in every epoch."""

    def __init__(self, net: nn.Module, cut: Cut) -> None:
        self.cut = cut
        self.suffix = Suffix(net, cut)
        self.name = _place(cut)
        self.bytes_per_image = sum(torch.Size(slot.shape).numel() * slot.dtype.itemsize for slot in cut.slots)
        self.deviation = 0.0  # largest difference from the uncut network that was seen; 0 where they agree to the bit

    def prefix(self, images: Tensor) -> tuple[Tensor, ...]:
        """Activations of images [N, C, H, W], each [N, ...] and detached. Changes nothing and draws nothing.

        Under autocast they have the type that the network computes in.
        """
        with evaluating(self.suffix.net), torch.no_grad():
            return _take(self.suffix.net, images, [slot.sites[0] for slot in self.cut.slots])

    def suffix_of(self, net: nn.Module) -> Suffix:
        """The suffix of a copy of the network, such as its moving average. It must be frozen alike."""
        return Suffix(net, self.cut)


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
        found.deviation = _try(net, found, images)
    return found


# --- Following ---------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Node:
    """One value of an absent tensor: what it was computed from, and in which module calls."""

    stack: tuple["_Call", ...]
    sources: tuple["_Node", ...]
    shape: tuple[int, ...]
    live: bool  # something that is not frozen took part in it


@dataclass(eq=False)
class _Call:
    """One call of a module, and the values that it was given and returned (None for tensors that do not come from images)."""

    module: str
    index: int
    outer: tuple["_Call", ...]
    given: list[_Node | None]
    plain: bool  # one tensor in, one tensor out
    returned: list[_Node | None] = field(default_factory=list)
    live: bool = False

    def site(self, node: _Node, *, entering: bool) -> Site | None:
        nodes = self.given if entering else self.returned
        leaf = next((i for i, other in enumerate(nodes) if other is node), None)
        return None if leaf is None or node.shape[:1] != (BATCH,) else Site(self.module, self.index, entering, leaf)


class _Trace:
    """What happened to absent tensors in one forward pass."""

    def __init__(self, drawing: set[str], moving: set[int]) -> None:
        self.drawing = drawing  # names of modules that draw random numbers
        self.moving = moving  # ids of buffers that move in training
        self.stack: list[_Call] = []
        self.calls: list[_Call] = []
        self.uses: list[tuple[_Node, tuple[_Call, ...]]] = []  # a frozen value used by what is not frozen, and where

    def note(self, func: Any, tensors: list[Tensor], result: Any) -> None:
        made = _tensors(result)
        if result is None and getattr(func, "__name__", "") == "__setitem__":
            made = tensors[:1]
        if not made:
            return  # a shape, or the like
        sources = tuple(tensor.node for tensor in tensors if isinstance(tensor, Absent))
        learns = any(tensor.requires_grad or id(tensor) in self.moving for tensor in tensors if not isinstance(tensor, Absent))
        live = learns or any(node.live for node in sources) or (bool(self.stack) and self.stack[-1].module in self.drawing)
        stack = tuple(self.stack)
        if live:
            self.uses += [(node, stack) for node in sources if not node.live]
            for call in stack:
                call.live = True
        for tensor in made:
            if isinstance(tensor, Absent):
                tensor.node = _Node(stack, sources, tuple(tensor.shape), live)

    @contextmanager
    def listening(self, net: nn.Module) -> Iterator[None]:
        counts: Counter[str] = Counter()

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                plain = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
                call = _Call(name, counts[name], tuple(self.stack), _nodes((args, kwargs)), plain)
                counts[name] += 1
                self.calls.append(call)
                self.stack.append(call)

            return hook

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            call = self.stack.pop()
            call.returned = _nodes(output)
            call.plain &= isinstance(output, Tensor)

        hooks: list[Any] = []
        for name, module in net.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Absent(Tensor):
    """Stands for an activation that is not computed: a shape and a type on the meta device, but no values.

    What is computed from it is absent too. It claims to be where the network is, and tells its trace, if it has one.
    """

    place: torch.device
    record: _Trace | None = None
    node: _Node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        first = next(tensor for tensor in tensors if isinstance(tensor, Absent))
        if func in WHERE:
            return func(torch.empty(0, device=first.place))
        result = super().__torch_function__(func, types, *_map(_to_meta, (args, kwargs), (Tensor, torch.device)))
        for tensor in _tensors(result):
            if isinstance(tensor, Absent):
                tensor.place, tensor.record = first.place, first.record
        if first.record is not None:
            first.record.note(func, tensors, result)
        return result

    def __deepcopy__(self, memo: Any) -> "Absent":
        return self  # there is nothing in it to keep apart


def _absent(meta: Tensor, place: torch.device) -> Absent:
    tensor = meta.as_subclass(Absent)
    tensor.place = place
    return tensor


def _to_meta(value: Any) -> Any:
    if isinstance(value, Absent):
        return value
    return value.detach().to("meta") if isinstance(value, Tensor) else torch.device("meta")


def _nodes(value: Any) -> list[_Node | None]:
    return [tensor.node if isinstance(tensor, Absent) else None for tensor in _tensors(value)]


def _unsteady(net: nn.Module, images: Tensor) -> tuple[set[str], set[int]]:
    """Names of the modules whose own code draws random numbers in train mode, and ids of the buffers that it moves."""
    drawing: set[str] = set()
    stack: list[str] = []
    last = _drawn(images)

    def look() -> None:
        nonlocal last
        now = _drawn(images)
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


def _drawn(images: Tensor) -> list[Tensor]:
    """States of the generators that the network may draw from."""
    on_gpu = [torch.cuda.get_rng_state(images.device)] if images.is_cuda else []
    return [torch.get_rng_state(), *on_gpu]


# --- Finding -----------------------------------------------------------------------------------------------------------------


def _find(net: nn.Module, images: Tensor, drawing: set[str], moving: set[int]) -> Cut:
    trace = _Trace(drawing, moving)
    absent = _absent(torch.empty((BATCH, *images.shape[1:]), dtype=images.dtype, device="meta"), images.device)
    absent.record = trace
    absent.node = _Node((), (), tuple(absent.shape), live=False)
    try:
        with trace.listening(net), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            output = net(absent)
    except Exception as error:  # a foreign network may do anything with a tensor without values
        raise NoFrontier(f"its forward pass cannot be followed without values ({_line(error)})") from error
    if not any(node is not None and node.live for node in _nodes(output)):
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
        samples = _take(net, images, [places[0] for places in sites])
    slots = tuple(_slot(places, sample) for places, sample in zip(sites, samples, strict=True))
    return Cut(slots, tuple(sorted(outermost)), _head(trace, list(needed), output), tuple(images.shape[1:]))


def _frozen_modules(net: nn.Module, trace: _Trace, moving: set[int]) -> set[str]:
    """Names of the modules with state that were only called with frozen values and gave back nothing else."""
    modules = dict(net.named_modules())
    returned: dict[str, list[_Node | None]] = {}
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


def _needed(net: nn.Module, trace: _Trace, frozen: set[str]) -> dict[_Node, set[Site]]:
    """The frozen values that have to be stored, and where each is put in.

    Raises:
        _Open: a value is used that a module in `frozen` does not return, or not with the images as its first dimension.
    """
    modules = dict(net.named_modules())
    hidden = {id(inner) for name in frozen for inner in modules[name].modules()}  # their calls cannot be counted in the suffix
    needed: dict[_Node, set[Site]] = {}

    def need(node: _Node, stack: tuple[_Call, ...]) -> None:
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
        if node.sources and all(_follows(source, node.stack, rest, frozen) for source in node.sources):
            needed = rest
    return needed


def _follows(node: _Node, stack: tuple[_Call, ...], needed: Mapping[_Node, set[Site]], frozen: set[str]) -> bool:
    if any(call.module in frozen for call in stack):
        return False
    if node in needed:
        inside = {(call.module, call.index) for call in stack}
        return any(not site.entering or (site.module, site.call) in inside for site in needed[node])
    return bool(node.sources) and all(_follows(source, node.stack, needed, frozen) for source in node.sources)


def _behind(node: _Node, frozen: set[str]) -> bool:
    """Whether a frozen layer took part in a value."""
    seen: set[_Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if any(call.module in frozen for call in node.stack):
            return True
        seen.add(node)
        waiting += [source for source in node.sources if source not in seen]
    return False


def _first_live(net: nn.Module, trace: _Trace, moving: set[int]) -> str:
    own = (call.module for call in trace.calls if call.live)
    learning = {
        name
        for name, module in net.named_modules()
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensor.requires_grad or id(tensor) in moving
    }
    return next((name or "its own parameters" for name in own if name in learning), "its input")


def _head(trace: _Trace, needed: list[_Node], output: Any) -> str | None:
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


# --- Taking and putting in ---------------------------------------------------------------------------------------------------


def _take(net: nn.Module, images: Tensor, sites: list[Site]) -> tuple[Tensor, ...]:
    """Copies of the tensors at `sites`, from one forward pass in the modes that `net` is in, ended when all have been seen."""
    found: dict[Site, Tensor] = {}
    counts: Counter[tuple[str, bool]] = Counter()

    def look(name: str, entering: bool, value: Any) -> None:
        call = counts[name, entering]
        counts[name, entering] += 1
        for site in sites:
            if (site.module, site.call, site.entering) == (name, call, entering):
                found[site] = _tensors(value)[site.leaf].detach().clone()
        if len(found) == len(sites):
            raise _Complete

    hooks: list[Any] = []
    for name in {site.module for site in sites}:
        module = net.get_submodule(name)
        before = lambda module, args, kwargs, name=name: look(name, True, (args, kwargs))  # noqa: E731
        after = lambda module, args, output, name=name: look(name, False, output)  # noqa: E731
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        net(images)
    except _Complete:
        return tuple(found[site] for site in sites)
    finally:
        for hook in hooks:
            hook.remove()
    raise NoFrontier("its forward pass is another one in eval mode than in train mode")


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

    return _map(choose, value)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(found.append, value)
    return found


def _map(function: Callable[[Any], Any], value: Any, kind: Any = Tensor) -> Any:
    """`value` with `function` applied to everything of this kind in its tuples, lists and dicts, in order."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        parts = [_map(function, part, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return type(value)((key, _map(function, part, kind)) for key, part in value.items())
    return value


# --- Trying ------------------------------------------------------------------------------------------------------------------


def _try(net: nn.Module, found: Split, images: Tensor) -> float:
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
        before = _drawn(images)
        activations = _take(net, images, sites)
        if any(not torch.equal(a, b) for a, b in zip(before, _drawn(images), strict=True)):
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
    for a, b in zip(_tensors(got), _tensors(want), strict=True):
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
        raise NoFrontier(f"{wrong} ({_line(error)})") from error


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


def _place(cut: Cut) -> str:
    places = list(dict.fromkeys(str(slot.sites[0]) for slot in cut.slots))
    return " and ".join(places if len(places) < 4 else [*places[:2], f"{len(places) - 2} more places"])


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
