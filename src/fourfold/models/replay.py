"""Forward passes of the same inputs that differ only behind one layer: what comes before it is computed once."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fourfold.models.absent import mapped


@contextmanager
def replaying(net: nn.Module, layer: str) -> Iterator[None]:
    """In this, `net` keeps what its modules put out in the first pass up to and with the first call of `layer`, and gives
    copies of it in every further one. Hooks are called as before, so that one on `layer` may change what goes on from there.

    All passes have to be of the same inputs, in eval mode. A network whose modules reach past what they return (by changing
    what they were given, say) may answer otherwise: compare a pass with one from outside before you believe it.

    Args:
        net: Nothing of it is changed for good.
        layer: A module's name.
    """
    kept: dict[tuple[nn.Module, int], Any] = {}
    calls: Counter[nn.Module] = Counter()
    left = False
    target = net.get_submodule(layer)

    def wrapped(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            key = (module, calls[module])
            calls[module] += 1
            if key not in kept:
                answer = forward(*args, **kwargs)
                if left:
                    return answer
                kept[key] = mapped(lambda tensor: tensor.clone(), answer)  # others may change it in place
                left = module is target
            return mapped(lambda tensor: tensor.clone(), kept[key])

        return call

    parts = layer.split(".")
    above = [net.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    ways = {id(each) for each in above}
    beside = {id(child): child for each in above for child in each.children() if id(child) not in ways}
    own = {key: module.__dict__.get("forward") for key, module in beside.items()}
    begin = net.register_forward_pre_hook(lambda *_: calls.clear())
    for module in beside.values():
        if not getattr(module, "inplace", False):
            module.__dict__["forward"] = wrapped(module, module.forward)
    try:
        yield
    finally:
        begin.remove()
        for key, module in beside.items():
            module.__dict__.pop("forward", None)
            if own[key] is not None:
                module.__dict__["forward"] = own[key]
