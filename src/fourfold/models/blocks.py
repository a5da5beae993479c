"""A network as an ordered list of blocks, input side first: the unit in which strategies freeze and thaw."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from fourfold.config import ConfigError
from fourfold.zoo import group_parameters

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """Parameters that are frozen and thawed together, named as in `named_parameters()` and in their order."""

    name: str
    params: tuple[str, ...]


def split(net: nn.Module, heads: tuple[str, ...]) -> tuple[Block, ...]:
    """Cut everything but the heads into blocks.

    A network that knows its own groups (timm's `group_matcher`) is asked; any other is walked in order of registration.
    Every parameter lands in exactly one block or head: what belongs to no layer (a class token, a position embedding)
    belongs to the first block.

    Raises:
        ConfigError: nothing is left beside the head.
    """
    shapes = {name: param.numel() * (1 if param.ndim > 1 else 0) for name, param in net.named_parameters()}
    backbone = [name for name in shapes if not _inside(name, heads)]
    pieces = _own_groups(net) or _walk(net, heads)
    taken = {name for _, params in pieces for name in params}
    blocks: list[tuple[str, list[str]]] = []
    for name, params in pieces:
        kept = [param for param in params if not _inside(param, heads)]
        if not kept:
            continue
        if blocks and not any(shapes[param] for param in kept):  # a lone norm belongs to the layers before it
            blocks[-1][1].extend(kept)
        else:
            blocks.append((name, kept))
    if not blocks:
        raise ConfigError(f"the model has no parameters beside its head {', '.join(heads)}: there is nothing to transfer")
    blocks[0][1].extend(name for name in backbone if name not in taken)
    order = {name: position for position, name in enumerate(backbone)}
    result = tuple(Block(name, tuple(sorted(params, key=order.__getitem__))) for name, params in blocks)
    _check_partition(result, backbone)
    return result


def _check_partition(blocks: tuple[Block, ...], backbone: list[str]) -> None:
    count = Counter(param for block in blocks for param in block.params)
    wrong = [name for name in backbone if count[name] != 1]
    if wrong or len(count) != len(backbone):
        raise ConfigError(f"{len(wrong)} parameters belong to no block or to several, such as {wrong[:3]}: report this model")


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _own_groups(net: nn.Module) -> list[tuple[str, list[str]]]:
    """The groups of a network that has timm's `group_matcher`; empty when it has none, or one that does not work."""
    matcher = getattr(net, "group_matcher", None)
    if not callable(matcher):
        return []
    try:
        groups = group_parameters(net, matcher(coarse=False))
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError):  # some of timm's have none
        return []
    return [(_heart(net, params), params) for _, params in sorted(groups.items())]


def _heart(net: nn.Module, params: list[str]) -> str:
    """The module that holds the main part of a group and nothing beside it: `blocks.11` for a transformer block and a norm."""
    sizes = {name: param.numel() for name, param in net.named_parameters()}
    path, inside = "", params
    while len(inside) < sum(name.startswith(path) for name in sizes):
        weight: Counter[str] = Counter()
        for name in inside:
            child, dot, _ = name.removeprefix(path).partition(".")
            if dot:
                weight[f"{path}{child}."] += sizes[name]
        if not weight:
            return inside[0]  # bare parameters without a module
        path = weight.most_common(1)[0][0]
        inside = [name for name in params if name.startswith(path)]
    return path.removesuffix(".")


def _walk(net: nn.Module, heads: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Modules in order of registration; containers, wrappers of most of the network and the heads' ancestors are opened."""
    total = sum(param.numel() for param in net.parameters())
    pieces: list[tuple[str, list[str]]] = []

    def visit(name: str, module: nn.Module) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}" if name else child_name
            params = [f"{path}.{param}" for param, _ in child.named_parameters()]
            if not params or path in heads:
                continue
            if _opens(child, total) or any(head.startswith(f"{path}.") for head in heads):
                visit(path, child)
            else:
                pieces.append((path, params))

    visit("", net)
    return pieces


def _opens(module: nn.Module, total: int) -> bool:
    if type(module) in CONTAINERS:
        return True
    if isinstance(module, CONTAINERS):
        return any(_has_children(child) for child in module.children())
    return _nests(module) and sum(param.numel() for param in module.parameters()) > total / 2


def _nests(module: nn.Module) -> bool:
    """Whether it holds blocks, and not only layers and chains of layers (a shortcut)."""
    for child in module.children():
        chained = child.children() if isinstance(child, CONTAINERS) else [child]
        if any(_has_children(link) for link in chained):
            return True
    return False


def _has_children(module: nn.Module) -> bool:
    return any(True for _ in module.children())
