"""Stored activations of the frozen prefix in place of images: when they can stand for them, under which key, how made.

A frozen prefix gives the same answer for the same image in every epoch, for every learning rate, seed and trial. It is asked
once; what lies behind the frontier trains on what is stored, with the numbers of the whole network.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fourfold import freeze
from fourfold.activations import Held, Near, NoRoom, Part, Rows, Stale, Store
from fourfold.config import RunConfig
from fourfold.data import Batches, Splits, image_seed, randomness
from fourfold.entries import entries
from fourfold.identity import ROOT_IS_THE_DATA
from fourfold.loop import Kit, autocast, ready
from fourfold.models import TransferModel, frontier
from fourfold.models.fusing import Fused
from fourfold.provenance import versions
from fourfold.records import asdict

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADS = "heads"  # of any prefix: their runs are told together
SAMPLE = 4  # images on which a cut is tried
NO_ROW = np.iinfo(np.int64).max  # the place of an image that the run does not show: whoever reads it gets an IndexError
AGREE = 0.05  # of the largest logit: half precision stores three digits; another image or another cut is off by far more


class Disagreement(RuntimeError):
    """The whole network and its two parts give different answers: the run's numbers cannot be trusted."""


class ActivationSet(Dataset):
    """A split whose images are replaced by what the frozen prefix makes of them: a tuple of tensors [N, ...] for each batch."""

    def __init__(
        self,
        name: str,
        store: Store | Held | Near,
        keys: np.ndarray,
        labels: Tensor,
        dtypes: tuple[torch.dtype, ...],
        shown: np.ndarray,
    ) -> None:
        """
        Args:
            name: Of the store.
            store: Has the rows of the images that are shown.
            keys: int64 [N, K], those of each image's views.
            labels: [N, ...], as the split has them.
            dtypes: In which the network takes its activations.
            shown: int64 [n], positions of the images that the run will read.
        """
        self.name, self.store, self.keys, self.dtypes, self.shown = name, store, keys, dtypes, shown.tolist()
        self._places: np.ndarray = np.full(keys.shape, NO_ROW)
        self._places[shown] = store.places(keys[shown].ravel()).reshape(-1, keys.shape[1])
        self.labels = labels

    def __len__(self) -> int:
        return len(self._places)

    @property
    def on_host(self) -> bool:
        """Whether the rows have yet to travel to the device."""
        return not isinstance(self.store, Near)

    def take(self, positions: list[int], epoch: int) -> tuple[Rows, Tensor]:
        """A whole batch at once. In each epoch every image shows its next view."""
        return taken(self.store, self.places(positions, epoch), self.dtypes), self.labels[positions]

    def places(self, positions: list[int] | np.ndarray, epoch: int) -> np.ndarray:
        """Where the rows of these images are in the store, in this epoch."""
        at = np.asarray(positions)
        return self._places[at, (epoch + at) % self._places.shape[1]]


def taken(store: Store | Held | Near, places: np.ndarray, dtypes: tuple[torch.dtype, ...]) -> Rows:
    """The rows at these places as the network takes them."""
    return tuple(row.to(dtype) for row, dtype in zip(store.take(places), dtypes, strict=True))


@dataclass
class Known:
    """What earlier runs of this process have found out about networks with the same frozen prefix; empty for a run alone."""

    cuts: dict[Hashable, frontier.Cut] = field(default_factory=dict)
    stores: dict[str, Store | Held] = field(default_factory=dict)  # whose rows were compared with fresh ones
    # by store and image: digest of the row as which the whole network has answered to the image, in this process
    answered: dict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    near: dict[str, Near] = field(default_factory=dict)  # copies of stores on the device, the one used last at the end
    fused: dict[str, Fused] = field(default_factory=dict)  # the one used last, since it has weights of its own
    held_for: list[str | None] = field(default_factory=lambda: [None])  # whose rows may lie in memory

    def of_others(self) -> "Known":
        """The same for a network of which more than a head learns: its own answers are yet to be compared."""
        return replace(self, answered=defaultdict(dict), fused={})

    def turn_to(self, prefix: str | None) -> None:
        """A run comes to this prefix, or to none: memory is held for the rows of no other."""
        if self.held_for != [prefix]:
            self.held_for[:] = [prefix]
            self.near.clear()
            for key in [key for key, store in self.stores.items() if isinstance(store, Held)]:
                del self.stores[key]

    def fused_of(self, prefix: str) -> Fused:
        """The fused layers of this prefix."""
        if prefix not in self.fused:
            self.fused = {prefix: Fused()}
        return self.fused[prefix]

    def forget(self) -> None:
        """Let go of everything."""
        self.fused.clear()
        self.cuts.clear()
        self.stores.clear()
        self.answered.clear()
        self.near.clear()


@dataclass(frozen=True)
class Features:
    """The network of one phase in two, and the splits that need only its second part."""

    split: frontier.Split
    train: ActivationSet | None  # None: the training images differ from epoch to epoch
    val: ActivationSet
    known: Known
    prefix: str  # hash of what the frozen prefix computes


def build(
    config: RunConfig,
    model: TransferModel,
    splits: Splits,
    kit: Kit,
    frozen: str,
    known: Known | None = None,
    shown: tuple[list[int] | None, list[int] | None] = (None, None),
) -> Features | None:
    """Cut the network where its frozen prefix ends, and store what the prefix makes of the images; or say why not.

    Nothing is said of a network of which nothing is frozen. Where an activation would not fit on the disk it is kept in memory;
    where it does not fit there either, nothing is stored.

    Args:
        config: Of the run.
        model: Frozen for the present phase, on its device.
        splits: Of the run. The test split stays sealed.
        kit: Of the run.
        frozen: Fingerprint of what is frozen, by `freeze.fingerprint`.
        known: By earlier runs of this process; added to.
        shown: Positions of the training and of the validation images that the run will read; None: all of them.
    """
    known = Known() if known is None else known
    if config.cache.activations == "off" or all(parameter.requires_grad for parameter in model.net.parameters()):
        known.turn_to(None)
        return None
    try:
        prefix = _prefix(config, model, kit, frozen)
        known.turn_to(HEADS if freeze.head_alone(config.freeze_strategy) else prefix)
        found = _cut(config, model.net, splits.val, kit, known, prefix)
    except frontier.NoFrontier as reason:
        log.info("every epoch runs the whole network: %s", reason)
        return None
    views = _views(config)
    try:
        store = partial(_stored, config, splits, kit, found, known, prefix)
        val = None if config.trainer.overfit else store(splits.val, "val", None, shown[1])
        train = store(splits.train, "train", views, shown[0]) if views is not None else None
    except NoRoom as reason:
        log.warning("every epoch runs the whole network: %s", reason)
        return None
    told = "" if train is not None else "; the training images change from epoch to epoch (cache.views=8 would store 8 of each)"
    size = sum(torch.Size(slot.shape).numel() * _kept(slot.dtype, config.cache.dtype).itemsize for slot in found.cut.slots)
    log.info("the frozen prefix ends %s, %.3g kB per image, and is run once%s", found.name, size / 1e3, told)
    asked = train if val is None else val  # a run that learns one batch by heart is asked for that batch
    assert asked is not None
    return Features(found, train, asked, known, prefix)


def of_test(
    features: Features, config: RunConfig, net: nn.Module, splits: Splits, images: Batches, kit: Kit
) -> ActivationSet | None:
    """What the prefix makes of the test images, once they are open; None where the whole network shall read them.

    Every one of them has gone through the whole network in this process, from the image to the logits, when this returns: when
    its row was computed, or now. Rounded rows would test another network than the one that was trained, so there the whole
    network reads the images.

    Raises:
        Disagreement: an image gives other logits than its row.
    """
    if any(_kept(slot.dtype, config.cache.dtype) != slot.dtype for slot in features.split.cut.slots):
        return None
    try:
        store = partial(_stored, config, splits, kit, features.split, features.known, features.prefix)
        rows = store(images.dataset, "test", None, images.shown([0], config.trainer.limit_eval_batches))
    except NoRoom as reason:
        log.info("the whole network reads the test images: %s", reason)
        return None
    if left := _unanswered(features, rows, rows.shown):
        batches = _batches(config, _Views(images.dataset, [(at, 0) for at in left], None))
        _check(features, rows, net, left, (inputs for step in batches.at(0) for inputs, *_ in step), kit)
    return rows


def check(features: Features, net: nn.Module, val: Batches, kit: Kit) -> None:
    """Run a few validation images through the whole network, and compare with the answer from what is stored.

    Raises:
        Disagreement: they differ by more than rounding.
    """
    if left := _unanswered(features, features.val, features.val.shown[:SAMPLE]):
        _check(features, features.val, net, left, [val.read(left)[0]], kit)


def _unanswered(features: Features, stored: ActivationSet, positions: Sequence[int]) -> list[int]:
    """Those whose rows are not the ones as which the whole network has answered: for another run, if only its head differs."""
    answered, rows = features.known.answered[stored.name], stored.take([*positions], 0)[0]
    keys = stored.keys[[*positions], 0].tolist()
    return [at for at, key, digest in zip(positions, keys, _digests(rows), strict=True) if answered.get(key) != digest]


def _digests(rows: Rows) -> list[bytes]:
    """Of each image's activations, [N, ...] each."""
    pieces = [row.contiguous().view(len(row), -1).view(torch.uint8) for row in rows]
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in torch.cat(pieces, dim=1).cpu().numpy()]


def _check(
    features: Features, stored: ActivationSet, net: nn.Module, positions: list[int], images: Iterable[Tensor], kit: Kit
) -> None:
    """Run the images of these positions, batch by batch, through the whole network: does it answer as to their rows?"""
    was_training, suffix, seen = net.training, features.split.suffix_of(net), 0
    net.eval()
    for batch in images:
        some = positions[seen : seen + len(batch)]
        seen += len(batch)
        rows, _ = stored.take(some, 0)
        with torch.no_grad(), autocast(kit):
            _agree(net(ready(batch, kit)), suffix(*(row.to(kit.ranks.device) for row in rows)))
        features.known.answered[stored.name].update(zip(stored.keys[some, 0].tolist(), _digests(rows), strict=True))
    net.train(was_training)


def _agree(whole: Tensor, cut: Tensor) -> None:
    """Compare the logits of the whole network with those from what is stored."""
    off = float((whole.double() - cut.double()).abs().max())
    if not off <= AGREE * float(whole.double().abs().max().clamp(min=1e-6)):
        raise Disagreement(
            f"from stored activations the network's logits differ by {off:.3g} from those of its images: remove the folder "
            "activations in paths.cache, or add cache.activations=off, and please report the model and the strategy"
        )


def _views(config: RunConfig) -> int | None:
    """How many augmented views of each training image are stored; 0: the images are not augmented; None: none can be."""
    if config.transform.mixup or config.transform.cutmix:
        return None
    if config.transform.augmentation == "none":
        return 0
    return config.cache.views


def _cut(config: RunConfig, net: nn.Module, images: Dataset, kit: Kit, known: Known, prefix: str) -> frontier.Split:
    learning = tuple((each.name, tuple(each.tensor.shape)) for each in entries(net) if each.tensor.requires_grad)
    key = prefix, learning, repr(config.freeze_strategy), repr(config.dataset)  # these set modes and the images' size
    if key in known.cuts:
        return frontier.Split(net, known.cuts[key])  # names alone, which hold for every copy of the network
    if kit.ranks.world > 1:
        raise frontier.NoFrontier("several processes share the run")
    if config.dataset.loader.collate == "pad":
        raise frontier.NoFrontier("its images come with a mask")
    batches = _batches(config, images)
    sample = batches.read([*range(min(SAMPLE, batches.images))])[0]
    if len(sample) < 2:
        raise frontier.NoFrontier("one validation image is too few to try a cut on")
    with autocast(kit):
        found = frontier.split(net, ready(sample, kit))
    known.cuts[key] = found.cut
    return found


def _stored(
    config: RunConfig,
    splits: Splits,
    kit: Kit,
    found: frontier.Split,
    known: Known,
    prefix: str,
    part: Any,
    name: str,
    views: int | None,
    shown: list[int] | None,
) -> ActivationSet:
    """The rows of one split's images that are shown, those that are missing computed now."""
    manifest = splits.manifest
    chosen = {
        "train": ("train", manifest.train),
        "val": (manifest.val_from, manifest.val),
        "test": (manifest.test_from, manifest.test),
    }
    origin, indices = chosen[name]
    count = max(1, views or 0)
    keys = indices[:, None] * count + np.arange(count)  # [N, K]
    seen = np.arange(len(keys)) if shown is None else np.array(shown, dtype=np.int64)
    wanted = keys[seen].ravel()
    fused = known.fused_of(f"{prefix} {found.cut}") if fuses(config, kit) else None

    def produce(missing: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        where = {int(key): (position, view) for position, row in enumerate(keys) for view, key in enumerate(row)}
        batches = _batches(config, _Views(part, [where[int(key)] for key in missing], missing if views else None))
        for step, micro_batches in enumerate(batches.at(0)):
            for inputs, *_ in micro_batches:
                some = missing[step * batches.batch_size :][: len(inputs)]
                with autocast(kit):
                    yield some, compute(ready(inputs, kit), some)

    def compute(inputs: Tensor, some: np.ndarray) -> Rows:
        if found.cut.head is None:
            return fused(found.prefix, inputs) if fused else found.prefix(inputs)
        rows, *logits = fused(found.whole, inputs) if fused else found.whole(inputs)  # all that is left is the head
        _agree(*logits)
        known.answered[key].update(zip(some.tolist(), _digests(rows), strict=True))
        return rows

    dtypes = tuple(slot.dtype for slot in found.cut.slots)
    kept = tuple(_kept(dtype, config.cache.dtype) for dtype in dtypes)
    parts = [Part(slot.shape, dtype) for slot, dtype in zip(found.cut.slots, kept, strict=True)]
    recipe = asdict(config.transform) if views else "evaluation"
    key = _key(config, prefix, found, {"origin": origin, "recipe": recipe, "views": count, "images": part.stamp}, str(kept))

    def rows(store: Store | Held) -> ActivationSet:
        return ActivationSet(key, _near(store, key, known, kit.ranks.device), keys, part.labels, dtypes, seen)

    if key in known.stores and known.stores[key].has(wanted):
        known.stores[key].touch()
        return rows(known.stores[key])
    store = Store(Path(config.paths.cache) / "activations" / key, parts, int(config.cache.limit_gb * 1e9))
    try:
        store.fill(wanted, produce, check=not isinstance(known.stores.get(key), Store))
        known.stores[key] = store
    except (NoRoom, Stale, OSError) as reason:
        log.warning("activations stay in memory: %s", reason)
        known.stores[key] = Held(parts)
        known.stores[key].fill(wanted, produce)
    return rows(known.stores[key])


def _near(store: Store | Held, name: str, known: Known, device: torch.device) -> Store | Held | Near:
    """The store's copy on a GPU, where all copies together fit into a part of its memory; else the store."""
    if device.type != "cuda":
        return store
    near = known.near.pop(name, None)
    if near is not None and near.store is store and len(near) == len(store):
        known.near[name] = near
        return near
    needed = len(store) * store.row_bytes
    free, whole = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if needed > min(whole / 4, free / 2):
        return store
    while known.near and needed + sum(each.bytes for each in known.near.values()) > whole / 4:
        del known.near[next(iter(known.near))]
    try:
        near = Near(store, device)
    except torch.OutOfMemoryError:  # other processes use this GPU as well
        return store
    known.near[name] = near
    return near


class _Views(Dataset):
    """Chosen images of a split, each as one of its views, whose randomness belongs to its key, so that runs share it."""

    def __init__(self, part: Any, chosen: list[tuple[int, int]], keys: np.ndarray | None) -> None:
        self._part, self._chosen, self._keys = part, chosen, keys
        self.size = part.size
        if hasattr(part, "ready"):
            self.ready = lambda positions, workers: part.ready([chosen[position][0] for position in positions], workers)
        if keys is None and hasattr(part, "take"):
            self.take = lambda positions, epoch: part.take([chosen[position][0] for position in positions], epoch)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        if self._keys is not None:
            randomness.start(image_seed(0, 0, int(self._keys[position])))
        return self._part[self._chosen[position][0]]


def _batches(config: RunConfig, images: Dataset) -> Batches:
    """All images once, in their order."""
    loader = replace(config.dataset.loader, sampler="sequential", subset=None, drop_last=False, persistent_workers=False)
    return Batches(images, batch_size=config.trainer.eval_batch_size, accumulate=1, loader=loader, seed=0, shuffle=False)


def _kept(computed: torch.dtype, asked: str) -> torch.dtype:
    """In which type a row is stored: as it was computed, or in half the space."""
    return DTYPES[asked] if computed == torch.float32 else computed


def _prefix(config: RunConfig, model: TransferModel, kit: Kit, frozen: str) -> str:
    """Hash of what a frozen prefix computes, and how, wherever it ends."""
    told = {
        "weights": frozen,
        "model": [config.model.name, config.model.source, config.model._target_, config.model.kwargs, config.model.repo],
        "preprocessing": repr(model.preprocessing),
        "precision": [config.trainer.precision, kit.channels_last, kit.ranks.device.type, fuses(config, kit)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def fuses(config: RunConfig, kit: Kit) -> bool:
    """Whether the prefix may round as other kernels do: where nothing but a head learns from it, whose numbers then differ as
    little. Behind layers that learn, and above all behind their batch norms, rounding grows from step to step."""
    plain = kit.ranks.device.type == "cpu" and kit.autocast is None and not config.trainer.deterministic
    return plain and freeze.head_alone(config.freeze_strategy)


def _key(config: RunConfig, prefix: str, found: frontier.Split, images: dict[str, Any], kept: str) -> str:
    """Hash of all that a row depends on."""
    data = config.dataset
    root = data.root if data.source in ROOT_IS_THE_DATA else None
    told = {
        "prefix": prefix,
        "kept": kept,
        "cut": repr(found.cut),
        "dataset": [data.name, data.source, data._target_, data.kwargs, data.in_chans, data.loader.collate, root],
        "versions": {name: versions()[name] for name in ("torch", "torchvision", "timm")},
        **images,
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
