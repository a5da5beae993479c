"""What runs of a process have in common, above all those that train nothing but a head: built once, and lent to each."""

import copy
import json
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fourfold import data, features, freeze, metrics, models
from fourfold.config import RunConfig
from fourfold.entries import entries, named
from fourfold.metrics import MetricCollection
from fourfold.models import TransferModel
from fourfold.records import asdict
from fourfold.seeding import rng_state, set_rng_state

PLAIN = ("torch", "torchvision", "timm")  # packages whose modules know of no other than those inside them
KEPT = 4  # data sets and networks at a time; in a sweep they come one after the other, each with its seeds
SEEDS = 64  # splits, and heads, of each


class Stock:
    """Networks, splits and what is known of them, of the runs of one process.

    What comes from here is what the run would have built by itself, to the bit: the head too, and the random numbers that are
    drawn afterwards. Frozen tensors are lent, not copied, so nothing but what a run trains takes memory of its own; and so are
    the modules that hold nothing else, once a run has shown which these are: to copy them costs more than to train a head.
    Runs that train more than a head (`serves` says which) share only what is `known` of the frozen part.
    """

    def __init__(self) -> None:
        self.fingerprints = freeze.Fingerprints()
        self.known = features.Known()
        self._models: dict[Hashable, dict[int, tuple[TransferModel, dict[int, Any], Any]]] = {}  # tensors to lend, by their ids
        self._splits: dict[Hashable, dict[int, data.Splits]] = {}
        self._measures: dict[Hashable, MetricCollection] = {}
        self._plans: dict[Hashable, freeze.Plan] = {}
        self._still: dict[Hashable, tuple[str, ...]] = {}  # modules that are lent, by what runs must have in common

    @staticmethod
    def serves(config: RunConfig) -> bool:
        """Whether nothing but the head of a run ever learns, on a backbone that neither the seed nor other images change."""
        strategy = config.freeze_strategy
        as_it_is = strategy.norm_stats != "stochastic" and config.adapt.name == "none"
        return freeze.head_alone(strategy) and as_it_is and strategy.pretrained and config.model.weights is not None

    def model(self, config: RunConfig, num_outputs: int, device: torch.device) -> TransferModel:
        """As `models.create` on the device, after `seed_everything`: a network of its own around the tensors of the others."""
        layout = str(config.trainer.channels_last)  # in which a run brings the tensors that it is lent
        key = _key(config.model, num_outputs, config.dataset.in_chans, config.trainer.sync_batchnorm, str(device), layout)
        if key not in self._models and len(self._models) == KEPT:
            self.known.forget()
        seeds = _recent(self._models, key, KEPT)
        if config.seed not in seeds:
            first = next(iter(seeds.values()))[0] if seeds else None
            proven = None if first is None else first.heads
            made = models.create(config.model, num_outputs, in_chans=config.dataset.in_chans, proven=proven)
            made.net.to(device)
            if first is not None:
                _join(made, first)
            self.fingerprints.forget()  # the tensors that were just let go may have left their places to others
            lent = {id(tensor): tensor for name, tensor in _tensors(made.net) if not _of_head(name, made)}
            seeds[config.seed] = (made, lent, rng_state())
            while len(seeds) > SEEDS:
                del seeds[next(iter(seeds))]
        made, lent, random = seeds[config.seed]
        set_rng_state(random)
        still = self._still.get(_kind(config), ()) if _lends_modules(config) else ()
        modules = {id(module): module for module in map(made.net.get_submodule, still)}
        return replace(made, net=copy.deepcopy(made.net, lent | modules))

    def own(self, config: RunConfig, model: TransferModel, held: Collection[str]) -> None:
        """Give a network that was lent tensors of its own wherever something may change.

        Args:
            config: Of the run.
            model: What `model` gave, frozen.
            held: What cannot change, by `freeze.frozen`.
        """
        net, moving = model.net, {*model.heads}  # modules, by name
        for each in entries(net):
            if each.name in held:
                continue
            moving.add(each.owner)
            if each.is_buffer:
                each.module._buffers[each.key] = each.tensor.clone()
            else:
                each.tensor.data = each.tensor.data.clone()
        for owner, module in named(net):  # what no state dict has
            passing = {key: module._buffers[key] for key in module._non_persistent_buffers_set}
            module._buffers.update({key: buffer.clone() for key, buffer in passing.items() if buffer is not None})
            if passing:
                moving.add(owner)
        if _kind(config) not in self._still:
            self._still[_kind(config)] = _still(net, moving)

    def plan(self, config: RunConfig, make: Callable[[], freeze.Plan]) -> freeze.Plan:
        """What `make` gives; the names of what learns are the same in all networks of a kind."""
        key = (_kind(config), config.trainer.epochs)
        if key not in self._plans:
            self._plans[key] = make()
        return self._plans[key]

    def splits(self, config: RunConfig, load: Callable[[], data.Splits]) -> data.Splits:
        """What `load` gives, with a seal of its own."""
        seeds = _recent(self._splits, _key(config.dataset, config.transform, config.model, config.cache.images), KEPT)
        seed = config.seed if config.dataset.split_seed is None else 0
        if seed not in seeds:
            seeds[seed] = load()
            while len(seeds) > SEEDS:
                del seeds[next(iter(seeds))]
        return replace(seeds[seed], test=seeds[seed].test.again())

    def measures(self, task: str, num_outputs: int, device: torch.device) -> MetricCollection:
        """As `metrics.create` on the device. Each evaluation begins them anew, so one at a time serves all runs."""
        key = (task, num_outputs, device)
        if key not in self._measures:
            self._measures[key] = metrics.create(task, num_outputs).to(device)
        return self._measures[key]


def _lends_modules(config: RunConfig) -> bool:
    """Whether the run does not listen to what goes on inside its network: it would hear the others as well."""
    return not (config.logger.wandb.enabled and config.logger.wandb.watch)


def _kind(config: RunConfig) -> str:
    """Runs in which the same modules stay as they are."""
    return _key(config.model, config.dataset.in_chans, config.trainer.sync_batchnorm, config.freeze_strategy)


def _still(net: nn.Module, moving: Collection[str]) -> tuple[str, ...]:
    """Names of the outermost modules in which nothing changes, not even their mode, and that know of nothing outside."""
    apart: set[str] = set()
    for name, module in net.named_modules():
        known = type(module).__module__.partition(".")[0] in PLAIN
        listens = module._forward_hooks or module._forward_pre_hooks
        if name in moving or listens or not known or not freeze.is_held(module):
            steps = name.split(".")
            apart |= {".".join(steps[:depth]) for depth in range(len(steps) + 1)}
    return tuple(
        f"{name}.{child}".lstrip(".")
        for name in (name for name, _ in net.named_modules() if name in apart)
        for child, _ in net.get_submodule(name).named_children()
        if f"{name}.{child}".lstrip(".") not in apart
    )


def _join(made: TransferModel, first: TransferModel) -> None:
    """Let a network of another seed use the tensors of the first where they are the same, which they are unless drawn."""
    there = dict(_tensors(first.net))
    for name, tensor in _tensors(made.net):
        if not _of_head(name, made) and torch.equal(tensor, there[name]):
            tensor.data = there[name].data


def _tensors(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def _of_head(name: str, model: TransferModel) -> bool:
    return name.startswith(tuple(f"{head}." for head in model.heads))


def _key(*parts: Any) -> str:
    plain = [part if isinstance(part, str | int | bool) else asdict(part) for part in parts]
    return json.dumps(plain, sort_keys=True, default=str)


def _recent(kept: dict[Hashable, dict[int, Any]], key: Hashable, limit: int) -> dict[int, Any]:
    """What is kept under a key, which becomes the one used last; the one that was not used for longest goes."""
    kept[key] = kept.pop(key, {})
    while len(kept) > limit:
        del kept[next(iter(kept))]
    return kept[key]
