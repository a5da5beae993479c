"""What learns and what is frozen: a strategy described as data becomes phases, parameter groups, and a proof.

A strategy never changes the modules of a network or the keys of its state dict; adapters are there before it is asked. Frozen
parts are held in eval mode by an instance attribute that outranks `nn.Module.train`: no call of `.train()` can reach their
normalisation statistics or dropout.
"""

import functools
import hashlib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fourfold.config import ConfigError, FreezeConfig
from fourfold.entries import entries, named
from fourfold.state import Proof

if TYPE_CHECKING:
    from fourfold.models import TransferModel

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


Fingerprint = Callable[[Mapping[str, Tensor]], str]


class FrozenMoved(RuntimeError):
    """A frozen tensor changed while it was frozen: the result of the run would be a lie."""


@dataclass(frozen=True)
class Phase:
    """From epoch `start` on, the parameters named in `trainable` learn, at `lr_mult` times their group's own rate."""

    start: int
    trainable: frozenset[str]
    lr_mult: float = 1.0


@dataclass(frozen=True)
class Group:
    """Parameters that share one learning rate and one weight decay, and begin to learn in the same phase."""

    name: str
    params: tuple[str, ...]
    lr_mult: float
    decay: bool
    phase: int


@dataclass(frozen=True)
class Plan:
    """A strategy for one model: phases over the epochs, and groups that cover every parameter that ever learns once."""

    phases: tuple[Phase, ...]
    groups: tuple[Group, ...]
    norm_stats: str

    def phase_at(self, epoch: int) -> int:
        """Index of the phase that `epoch` belongs to."""
        return sum(phase.start <= epoch for phase in self.phases) - 1

    @property
    def learned(self) -> frozenset[str]:
        """Names of the parameters that learn in any epoch."""
        return frozenset().union(*(phase.trainable for phase in self.phases))

    def trainable(self, epoch: int) -> frozenset[str]:
        """Names of the parameters that learn in `epoch`."""
        return self.phases[self.phase_at(epoch)].trainable


def head_alone(config: FreezeConfig) -> bool:
    """Whether nothing but the head of a network ever learns, from the first epoch to the last."""
    phases = config.unfreeze_every is not None or config.probe_epochs is not None
    return config.trainable == "head" and config.adapter.kind == "none" and not phases


def plan(model: "TransferModel", config: FreezeConfig, epochs: int) -> Plan:
    """Turn a strategy into phases and parameter groups for `model`.

    Args:
        model: Its blocks (input side first) and its head partition the parameters.
        config: The strategy.
        epochs: Length of the run; fractions are fractions of it.

    Raises:
        ConfigError: The strategy asks for what this model does not have.
    """
    names = [each.name for each in entries(model.net) if not each.is_buffer]
    in_blocks = {name for block in model.blocks for name in block.params}
    head = frozenset(name for name in names if name not in in_blocks)
    final = head | model.adapters | _backbone_part(model, config)
    phases = _phases(model, config, epochs, head, final)
    return Plan(phases, _groups(model, config, phases), config.norm_stats)


def _backbone_part(model: "TransferModel", config: FreezeConfig) -> frozenset[str]:
    """Names of the backbone's parameters that learn in the last phase."""
    everything = [name for block in model.blocks for name in block.params]
    if config.trainable == "head":
        return frozenset()
    if config.trainable == "last_blocks":
        return _last_blocks(model, _count(config.blocks, len(model.blocks)))
    if config.trainable == "all_but_embedding":
        return frozenset(everything) - set(model.blocks[0].params)
    if config.trainable == "bias":
        return frozenset(name for name in everything if name.endswith("bias"))
    if config.trainable == "norm":
        norms = {name for name, module in model.net.named_modules() if _is_norm(module)}
        chosen = frozenset(name for name in everything if name.rpartition(".")[0] in norms)
        if not chosen:
            raise ConfigError(
                f"freeze_strategy.trainable=norm, but {type(model.net).__name__} has no normalisation layer with weights: "
                "choose a model that has (such as resnet18), or freeze=bias_only"
            )
        return chosen
    return frozenset(everything)


def _last_blocks(model: "TransferModel", count: int) -> frozenset[str]:
    return frozenset(name for block in model.blocks[len(model.blocks) - count :] for name in block.params)


def _count(blocks: int | float | None, available: int) -> int:
    """How many blocks `freeze_strategy.blocks` asks for: a count, or (up to 1.0, as a float) a fraction, rounded up."""
    assert blocks is not None  # checks.validate has refused it
    if isinstance(blocks, float) and blocks <= 1:
        return math.ceil(blocks * available)
    if blocks != int(blocks) or blocks > available:
        raise ConfigError(
            f"freeze_strategy.blocks={blocks}, but this model has {available} blocks: "
            f"choose 1 to {available}, or a fraction below 1"
        )
    return int(blocks)


def _phases(
    model: "TransferModel", config: FreezeConfig, epochs: int, head: frozenset[str], final: frozenset[str]
) -> tuple[Phase, ...]:
    if config.unfreeze_every is not None:
        phases = [Phase(0, head)]
        count = 0
        while phases[-1].trainable != final:
            count = min(count + config.unfreeze_blocks, len(model.blocks))
            start = len(phases) * config.unfreeze_every
            if start >= epochs:
                break
            phases.append(Phase(start, head | (_last_blocks(model, count) & final)))
        return tuple(phases)
    if config.probe_epochs is not None:
        probe = config.probe_epochs
        if isinstance(probe, float) and probe < 1:
            length = min(max(1, round(probe * epochs)), epochs - 1)
        else:
            length = int(probe)
            if length >= epochs:
                raise ConfigError(
                    f"freeze_strategy.probe_epochs={probe} leaves nothing of trainer.epochs={epochs} to fine-tune: "
                    f"choose 1 to {epochs - 1}, or a fraction below 1"
                )
        if length > 0:
            return Phase(0, head), Phase(length, final, config.finetune_lr_mult)
    return (Phase(0, final),)


def _groups(model: "TransferModel", config: FreezeConfig, phases: tuple[Phase, ...]) -> tuple[Group, ...]:
    """Every parameter that ever learns, exactly once, by phase, depth and weight decay."""
    depth_of = {name: len(model.blocks) - i for i, block in enumerate(model.blocks) for name in block.params}
    members: dict[tuple[int, float, bool], list[str]] = {}
    for each in entries(model.net):
        joins = next((i for i, phase in enumerate(phases) if each.name in phase.trainable), None)
        if joins is None:
            continue
        depth = depth_of.get(each.name, 0)  # the head is at depth 0
        lr_mult = config.layer_decay**depth * (config.backbone_lr_mult if depth else 1.0)
        members.setdefault((joins, lr_mult, each.tensor.ndim > 1), []).append(each.name)
    ordered = sorted(members.items(), key=lambda item: (item[0][0], -item[0][1], not item[0][2]))
    return tuple(
        Group(f"phase{joins}/lr_x{lr_mult:.3g}/{'decay' if decay else 'no_decay'}", tuple(params), lr_mult, decay, joins)
        for (joins, lr_mult, decay), params in ordered
    )


def apply(net: nn.Module, phase: Phase, norm_stats: str) -> None:
    """Make exactly the parameters of `phase` learn, and hold every frozen module in eval mode. Changes `net` in place.

    A gradient left over from before is dropped, since an optimizer would still apply it. A module without parameters
    (dropout, say) shares the fate of the last parameter registered before it in its parent, or else of the first after it.
    """
    for each in entries(net):
        if not each.is_buffer:
            each.tensor.requires_grad_(each.name in phase.trainable)
            if each.name not in phase.trainable:
                each.tensor.grad = None
    for module in net.modules():
        module.__dict__.pop("train", None)
    for module in _frozen_modules(net, norm_stats):
        module.__dict__["train"] = types.MethodType(_stay_in_eval, module)
    net.train(net.training)


def is_held(module: nn.Module) -> bool:
    """Whether `apply` holds the module in eval mode."""
    return "train" in module.__dict__


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def _frozen_modules(net: nn.Module, norm_stats: str) -> list[nn.Module]:
    frozen: list[nn.Module] = []

    @functools.cache
    def flags(module: nn.Module) -> tuple[bool, ...]:
        own = (parameter.requires_grad for parameter in module.parameters(recurse=False))
        return (*own, *(flag for child in module.children() for flag in flags(child)))

    def visit(module: nn.Module, inherited: bool) -> None:
        learns = flags(module)
        if _is_norm(module) and _has_statistics(module):
            own = list(module.parameters(recurse=False))
            follows = all(p.requires_grad for p in own) if own else not inherited
            hold = norm_stats == "frozen" or not follows
        else:
            hold = not any(learns) if learns else inherited
        if hold:
            frozen.append(module)
        own_learns = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        last = own_learns[-1] if own_learns else None
        children = [*module.children()]
        for i, child in enumerate(children):
            following = next((later[0] for each in children[i:] if (later := flags(each))), None)
            nearest = last if last is not None else following
            visit(child, hold if nearest is None else not nearest)
            last = flags(child)[-1] if flags(child) else last

    visit(net, inherited=False)
    return frozen


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or (_has_statistics(module) and not list(module.children()))


def _has_statistics(module: nn.Module) -> bool:
    return "running_mean" in module._buffers


def frozen(net: nn.Module) -> dict[str, Tensor]:
    """What may not change now, by state-dict name: parameters that do not learn, and buffers of modules held in eval mode."""
    held: dict[str, bool] = {}
    for name, module in named(net):  # parents first
        held[name] = is_held(module) or held.get(name.rpartition(".")[0], False)
    found = (each for each in entries(net) if (held[each.owner] if each.is_buffer else not each.tensor.requires_grad))
    return {each.name: each.tensor for each in sorted(found, key=lambda each: each.name)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Fingerprints:
    """Fingerprints of tensors that networks share, each taken once until something may have moved."""

    def __init__(self) -> None:
        self._taken: dict[tuple[tuple[str, int], ...], str] = {}

    def __call__(self, tensors: Mapping[str, Tensor]) -> str:
        """As `fingerprint`."""
        key = tuple((name, tensor.data_ptr()) for name, tensor in tensors.items())
        if key not in self._taken:
            self._taken[key] = fingerprint(tensors)
        return self._taken[key]

    def forget(self) -> None:
        """A step was trained, or other tensors may lie where some lay."""
        self._taken.clear()


def begin_proof(net: nn.Module, phase: int, epoch: int, take: Fingerprint = fingerprint) -> Proof:
    """Take the fingerprint of what is frozen now."""
    tensors = frozen(net)
    return Proof(phase, (epoch, epoch), len(tensors), take(tensors))


def end_proof(net: nn.Module, proof: Proof, epoch: int, take: Fingerprint = fingerprint) -> Proof:
    """Compare with the fingerprint taken before.

    Raises:
        FrozenMoved: a frozen weight or statistic has changed.
    """
    tensors = frozen(net)
    after = take(tensors)
    if after != proof.before or len(tensors) != proof.tensors:
        raise FrozenMoved(
            f"something frozen moved between epochs {proof.epochs[0]} and {epoch}: {len(tensors)} tensors hash to "
            f"{after[:12]}, before to {proof.before[:12]}; the run's numbers cannot be trusted, please report the model and "
            "the strategy"
        )
    return Proof(proof.phase, (proof.epochs[0], epoch), proof.tensors, proof.before, after)
