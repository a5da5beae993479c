"""Tensors with a shape but no values, and the recording of what a network does with them in one forward pass.

Every operation on them is noted, and whether something took part in it that learns, moves (batch statistics) or draws random
numbers. Whatever is computed from an absent tensor is absent, so that a value that was never stored cannot be used unnoticed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 13  # of the followed pass: hardly the size of anything else, so that the batch dimension can be told from others
WHERE = (torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__, torch.Tensor.is_meta.__get__)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Site:
    """A tensor that a module is given or returns in one of its calls."""

    module: str  # as in `named_modules()`; "" is the network
    call: int  # the how-manieth call of this module in one forward pass
    entering: bool  # given, else returned
    leaf: int  # which of the tensors in its arguments, or in what it returns

    def __str__(self) -> str:
        return f"{'before' if self.entering else 'after'} {self.module or 'the network'}"


@dataclass(eq=False)
class Node:
    """One value of an absent tensor: what it was computed from, and in which module calls."""

    stack: tuple["Call", ...]
    sources: tuple["Node", ...]
    shape: tuple[int, ...]
    live: bool  # something that is not frozen took part in it


@dataclass(eq=False)
class Call:
    """One call of a module, and the values that it was given and returned (None for tensors that do not come from images)."""

    module: str
    index: int
    outer: tuple["Call", ...]
    given: list[Node | None]
    plain: bool  # one tensor in, one tensor out
    returned: list[Node | None] = field(default_factory=list)
    live: bool = False

    def site(self, node: Node, *, entering: bool) -> Site | None:
        nodes = self.given if entering else self.returned
        leaf = next((i for i, other in enumerate(nodes) if other is node), None)
        return None if leaf is None or node.shape[:1] != (BATCH,) else Site(self.module, self.index, entering, leaf)


class Recording:
    """What happened to absent tensors in one forward pass."""

    def __init__(self, drawing: set[str], moving: set[int]) -> None:
        self.drawing = drawing  # names of modules that draw random numbers
        self.moving = moving  # ids of buffers that move in training
        self.stack: list[Call] = []
        self.calls: list[Call] = []
        self.uses: list[tuple[Node, tuple[Call, ...]]] = []  # a frozen value used by what is not frozen, and where

    def note(self, func: Any, tensors: list[Tensor], result: Any) -> None:
        made = tensors_in(result)
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
                tensor.node = Node(stack, sources, tuple(tensor.shape), live)

    @contextmanager
    def listening(self, net: nn.Module) -> Iterator[None]:
        counts: Counter[str] = Counter()

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                plain = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
                call = Call(name, counts[name], tuple(self.stack), nodes_of((args, kwargs)), plain)
                counts[name] += 1
                self.calls.append(call)
                self.stack.append(call)

            return hook

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            call = self.stack.pop()
            call.returned = nodes_of(output)
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
    record: Recording | None = None
    node: Node

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        first = next(tensor for tensor in tensors if isinstance(tensor, Absent))
        if func in WHERE:
            return func(torch.empty(0, device=first.place))
        result = super().__torch_function__(func, types, *mapped(to_meta, (args, kwargs), (Tensor, torch.device)))
        for tensor in tensors_in(result):
            if isinstance(tensor, Absent):
                tensor.place, tensor.record = first.place, first.record
        if first.record is not None:
            first.record.note(func, tensors, result)
        return result

    def __deepcopy__(self, memo: Any) -> "Absent":
        return self  # there is nothing in it to keep apart


def absent(meta: Tensor, place: torch.device) -> Absent:
    tensor = meta.as_subclass(Absent)
    tensor.place = place
    return tensor


def to_meta(value: Any) -> Any:
    if isinstance(value, Absent):
        return value
    return value.detach().to("meta") if isinstance(value, Tensor) else torch.device("meta")


def nodes_of(value: Any) -> list[Node | None]:
    return [tensor.node if isinstance(tensor, Absent) else None for tensor in tensors_in(value)]


def tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


def mapped(function: Callable[[Any], Any], value: Any, kind: Any = Tensor) -> Any:
    """`value` with `function` applied to everything of this kind in its tuples, lists and dicts, in order."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        parts = [mapped(function, part, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return type(value)((key, mapped(function, part, kind)) for key, part in value.items())
    return value
