"""`fourfold place`: how similar and how large a target is, measured before anything learns from it, and what that suggests."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourfold import data, freeze, models
from fourfold.compose import compose
from fourfold.config import ConfigError, FreezeConfig, RunConfig
from fourfold.models import frontier
from fourfold.ranks import joined
from fourfold.seeding import rng_state, seed_everything, set_rng_state
from fourfold.transferability import Lift, batch_norm_shift, lift, logme_gain

MOST = 2000  # training images that are looked at; ten of each class where there are more than 200 classes
PER_CLASS = 10
INITIALISATIONS = 2  # random networks that the pretrained one is compared with
SAMPLE = 4  # images on which the cut before the head is tried
NEAR, FAR = 0.9, 0.5  # lift from which a target is similar, and below which it is different; set on twelve toy targets
SMALL, LARGE = 20, 100  # images per class: up to which a target is small, and from which it is large
STRATEGIES = ("classifier_only", "last_blocks", "full")
STUDY = "docs/embedded_study.md"
LIMITS = (
    "The lift's thresholds (.9 and .5) were set on twelve toy targets at 32 x 32 pixels and tested on no other; 20 and 100 "
    "images per class are a convention. A low lift says that frozen features do not help, not that pretraining does not: "
    "nothing here speaks for training from scratch. It orders what to try; "
    "`fourfold -m freeze=classifier_only,last_blocks,full` decides."
)


@dataclass(frozen=True)
class Size:
    """How much there is to learn from, and how much would learn."""

    images: int  # training images
    fewest: int  # of a class
    most: int
    classes: int
    learns: dict[str, int]  # strategy -> parameters that ever learn

    @property
    def per_class(self) -> float:
        return self.images / self.classes

    @property
    def names(self) -> tuple[str, ...]:
        """small, large, or, between the two thresholds, both."""
        return (*(["small"] if self.per_class < LARGE else []), *(["large"] if self.per_class > SMALL else []))


@dataclass(frozen=True)
class Placement:
    """Where a target stands.

    Attributes:
        lift: see `transferability.lift`; undefined where it says why.
        logme_gain: nats per image and class.
        shift: of the batch-norm statistics, nats per channel; None where the network has none.
        seen: training images that were looked at.
        size: of the whole training split.
        shares: similar, middle and different -> share of the lift's bootstrap draws; empty where the lift is undefined.
    """

    lift: Lift
    logme_gain: float
    shift: float | None
    seen: int
    size: Size
    shares: dict[str, float]

    @property
    def similarity(self) -> str | None:
        return None if self.lift.value is None else similarity(self.lift.value)


@dataclass(frozen=True)
class Evidence:
    """What the embedded study measured in a quadrant, and what that speaks for."""

    accuracy: dict[str, str]  # strategy -> test accuracy in percent, mean and standard deviation over three seeds
    suggested: str
    why: str


EVIDENCE = {
    ("similar", "small"): Evidence(
        {"classifier_only": "93.4 ± 0.9", "last_blocks": "88.5 ± 0.2", "full": "82.5 ± 3.2", "from_scratch": "19.6 ± 3.1"},
        "classifier_only",
        "every other strategy was shown to be behind it",
    ),
    ("similar", "large"): Evidence(
        {"classifier_only": "97.7 ± 0.3", "last_blocks": "98.7 ± 0.3", "full": "98.6 ± 0.4", "from_scratch": "97.3 ± 0.3"},
        "last_blocks",
        "it tied with fine-tuning everything, and trains less; only from_scratch was shown to be behind",
    ),
    ("middle", "small"): Evidence(
        {"classifier_only": "89.5 ± 3.0", "last_blocks": "91.8 ± 2.1", "full": "91.5 ± 1.1", "from_scratch": "77.6 ± 2.8"},
        "last_blocks",
        "it was 2 points ahead of classifier_only, which three seeds do not settle: try both",
    ),
    ("middle", "large"): Evidence(
        {"classifier_only": "96.5 ± 0.1", "last_blocks": "98.8 ± 0.1", "full": "98.1 ± 0.6", "from_scratch": "98.6 ± 0.6"},
        "last_blocks",
        "it trains least of the pretrained strategies that were not shown to be behind; from_scratch was not either",
    ),
    ("different", "small"): Evidence(
        {"classifier_only": "15.3 ± 1.4", "last_blocks": "16.8 ± 1.6", "full": "20.3 ± 3.7", "from_scratch": "14.7 ± 2.5"},
        "full",
        "it lost least, though none was shown to be behind and chance is 10: expect little of any strategy without more images",
    ),
    ("different", "large"): Evidence(
        {"classifier_only": "26.2 ± 3.0", "last_blocks": "40.7 ± 0.3", "full": "77.5 ± 0.6", "from_scratch": "72.8 ± 2.1"},
        "full",
        "every other strategy was shown to be behind it, from_scratch included",
    ),
}


def similarity(value: float) -> str:
    """similar, middle or different, by the lift."""
    return "similar" if value >= NEAR else "middle" if value >= FAR else "different"


def refuse(config: RunConfig) -> None:
    """Say what cannot be placed, before weights are made or images read.

    Raises:
        ConfigError: a task without classes, no pretrained weights, or images of several sizes in one batch.
    """
    task, collate = config.dataset.task, config.dataset.loader.collate
    if task != "classification":
        raise ConfigError(
            f"dataset.task={task}, but a place is defined by how well one class per image can be told: "
            "`fourfold place` needs dataset.task=classification"
        )
    if not config.freeze_strategy.pretrained:
        raise ConfigError(
            f"freeze={config.freeze_strategy.name} starts from random weights, and similarity is that of pretrained ones: "
            "leave it out, or choose a strategy that starts from them"
        )
    if not config.model.weights:
        raise ConfigError(
            "model.weights=null leaves nothing to be similar to: choose default, a tag, a file or experiment:NAME"
        )
    if collate == "pad":
        raise ConfigError("dataset.loader.collate=pad keeps images of several sizes, which cannot be placed: choose resize")


def measure(config: RunConfig) -> Placement:
    """Measure where the training images stand; nothing is trained, no file written, and the test split stays sealed.

    Args:
        config: Validated; `model.weights` a tag or a file that is there.

    Raises:
        ConfigError: see `refuse`; or the model has no layer before its head, or the data cannot be had.
    """
    refuse(config)
    strategies = {name: compose([f"freeze={name}"]).freeze_strategy for name in STRATEGIES}
    with _as_before(), joined(config.trainer.device) as ranks:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        seed_everything(config.seed)
        outline = data.outline(config.dataset, config.seed)

        def network(pretrained: bool) -> models.TransferModel:
            made = models.create(config.model, outline.num_outputs, in_chans=config.dataset.in_chans, pretrained=pretrained)
            made.net.to(ranks.device).eval()
            return made

        model = network(pretrained=True)
        splits = data.load_splits(
            config.dataset, replace(config.transform, augmentation="none"), model.preprocessing, config.seed
        )
        images, labels = _first(splits, config)
        # all networks see the images alike: as the pretrained one was used to
        prepare = data.normalizer(model.preprocessing)
        parts = images.tensor_split(-(-len(images) // config.trainer.eval_batch_size))
        batches = _Prepared(parts, prepare, ranks.device)

        size = _size(splits, model, strategies, config)
        pretrained, shift = _features(model, strategies["classifier_only"], batches)
        random = []
        for _ in range(INITIALISATIONS):
            untrained = network(pretrained=False)
            _recalibrate(untrained.net, batches)
            random.append(_features(untrained, strategies["classifier_only"], batches)[0])
        try:
            found = lift(pretrained, random, labels, seed=config.seed)
            gain = logme_gain(pretrained, random, labels)
        except ValueError as error:
            raise ConfigError(f"{config.dataset.name} cannot be placed: {error}") from error
        return Placement(found, gain, shift, len(images), size, _shares(found.draws))


class _Prepared:
    """Batches of images as a network sees them, again and again; nearly equal in size, so that each counts the same."""

    def __init__(self, parts: Sequence[Tensor], prepare: Any, device: torch.device) -> None:
        self._parts, self._prepare, self._device = parts, prepare, device

    def __iter__(self) -> Iterator[Tensor]:
        return (self._prepare(part.to(self._device)) for part in self._parts)


@contextmanager
def _as_before() -> Iterator[None]:
    numbers, threads = rng_state(), torch.get_num_threads()
    algorithms, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        set_rng_state(numbers)
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(algorithms)
        torch.backends.cudnn.benchmark = benchmark


def _first(splits: data.Splits, config: RunConfig) -> tuple[Tensor, NDArray[np.int64]]:
    """The first training images, uint8 [N, C, H, W], and their classes [N]; every prefix of them is stratified."""
    most = max(MOST, PER_CLASS * splits.num_outputs)
    size = config.trainer.eval_batch_size
    subset = config.dataset.loader.sampler == "subset"  # then a run would train on these alone
    loader = replace(config.dataset.loader, drop_last=False, persistent_workers=False)
    train = data.Batches(splits.train, batch_size=size, accumulate=1, loader=loader, seed=config.seed, shuffle=subset)
    read = [batch for step in train.at(0, stop_step=-(-most // size)) for batch in step]
    images, labels = (torch.cat([batch[part] for batch in read])[:most] for part in (0, 1))
    return images, labels.numpy()


def _size(splits: data.Splits, model: models.TransferModel, strategies: dict[str, FreezeConfig], config: RunConfig) -> Size:
    sizes = {name: param.numel() for name, param in model.net.named_parameters()}
    learns = {
        name: sum(sizes[each] for each in freeze.plan(model, strategy, config.trainer.epochs).phases[-1].trainable)
        for name, strategy in strategies.items()
    }
    counts = splits.class_counts
    return Size(sum(counts), min(counts), max(counts), len(counts), learns)


def _features(model: models.TransferModel, head_only: FreezeConfig, batches: _Prepared) -> tuple[NDArray[Any], float | None]:
    """What the head is given, float [N, D], and how far the batch-norm statistics lie from those of these images."""
    plan = freeze.plan(model, head_only, epochs=1)
    freeze.apply(model.net, plan.phases[0], plan.norm_stats)
    try:
        found = frontier.split(model.net, next(iter(batches))[:SAMPLE])
    except frontier.NoFrontier as reason:
        raise ConfigError(f"the features of {type(model.net).__name__} cannot be taken: {reason}") from reason
    with _norms_watched(model.net) as seen:
        rows = [torch.cat([_flat(slot) for slot in found.prefix(batch)], dim=1).cpu() for batch in batches]
    return torch.cat(rows).double().numpy(), _shift(seen)


def _flat(activation: Tensor) -> Tensor:
    """[N, D]: maps [N, C, H, W] are averaged over their places, tokens [N, T, D] over themselves, as pooling would."""
    if activation.ndim == 3:
        activation = activation.mean(dim=1)
    elif activation.ndim > 3:
        activation = activation.flatten(2).mean(dim=2)
    return activation.float()


def _norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Layers that normalise by stored statistics."""
    return [
        module
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    ]


def _recalibrate(net: nn.Module, batches: _Prepared) -> None:
    """Set the batch-norm statistics to the mean of those of `batches`. Changes `net` in place."""
    norms = _norms(net)
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            net(batch)
    net.eval()


@contextmanager
def _norms_watched(net: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, list[Tensor]]]]:
    """For each batch-norm layer: stored mean and variance [C], and per batch count, mean and mean square off it [1 + 2 C]."""
    seen: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    hooks = []

    def watch(norm: nn.modules.batchnorm._BatchNorm) -> Any:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = norm.running_mean.clone()
        rows: list[Tensor] = []
        seen.append((mean.double().cpu(), norm.running_var.double().cpu(), rows))

        def hook(module: nn.Module, args: Any) -> None:
            values = args[0].detach().float().transpose(0, 1).flatten(1)  # [N, C, ...] -> [C, M]
            off = values - mean[:, None]  # so that no digits are lost where the mean is large
            count = off.new_tensor([off.shape[1]])
            rows.append(torch.cat([count, off.mean(dim=1), (off**2).mean(dim=1)]).double().cpu())

        return hook

    for norm in _norms(net):
        hooks.append(norm.register_forward_pre_hook(watch(norm)))
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()


def _shift(seen: list[tuple[Tensor, Tensor, list[Tensor]]]) -> float | None:
    stored_mean, stored_var, target_mean, target_var = [], [], [], []
    for mean, var, rows in seen:
        if not rows:
            continue  # a layer that the features do not pass
        table = torch.stack(rows)
        first, second = ((table[:, :1] * table[:, 1:]).sum(0) / table[:, 0].sum()).chunk(2)
        stored_mean.append(mean)
        stored_var.append(var)
        target_mean.append(mean + first)
        target_var.append((second - first**2).clamp(min=0))
    if not stored_mean:
        return None
    return batch_norm_shift(*(torch.cat(each).numpy() for each in (stored_mean, stored_var, target_mean, target_var)))


def _shares(draws: NDArray[np.float64]) -> dict[str, float]:
    if not len(draws):
        return {}
    near, far = float((draws >= NEAR).mean()), float((draws < FAR).mean())
    return {"similar": near, "middle": 1 - near - far, "different": far}


# --- Telling -----------------------------------------------------------------------------------------------------------------


def show(config: RunConfig) -> None:
    """Measure, and print what was found; see `measure` for errors."""
    placement = measure(config)
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    print(f"{config.dataset.name} seen by {config.model.name} with the weights {config.model.weights}\n")
    column = 2 + max(len(label) for label, _ in told(placement))
    for label, text in told(placement):
        lines = textwrap.wrap(text, max(40, width - column), break_long_words=False, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), " " * column).replace(" " * column, f"{label:{column}}", 1))


def told(placement: Placement) -> list[tuple[str, str]]:
    """Rows of (label, text)."""
    return [
        ("similarity", _similarity(placement)),
        ("", _beside(placement)),
        ("size", _images(placement.size)),
        ("", _relative(placement.size)),
        ("quadrant", _quadrant(placement)),
        *[row for name in placement.size.names for row in _advice(placement, name)],
        ("limits", LIMITS),
    ]


def _similarity(placement: Placement) -> str:
    found, whole = placement.lift, placement.size.images
    seen = (
        f"{placement.seen:,} training images"
        if placement.seen == whole
        else f"the first {placement.seen:,} of {whole:,} training images"
    )
    if found.value is None:
        return f"lift undefined on {seen}: {found.undefined}."
    return (
        f"lift {found.value:.2f} (95 % bootstrap interval {found.low:.2f} to {found.high:.2f}): the share of random features' "
        f"error that the pretrained ones remove. A linear probe on the pretrained ones is right in {found.pretrained:.1%}, on "
        f"random ones in {found.random:.1%} ({INITIALISATIONS} initialisations), cross-validated on {seen}."
    )


def _beside(placement: Placement) -> str:
    shift = "no batch norm" if placement.shift is None else f"batch-norm shift {placement.shift:.3f} nats per channel"
    return f"LogME gain {placement.logme_gain:.3f} nats per image and class; {shift}."


def _images(size: Size) -> str:
    spread = "" if size.fewest == size.most else f" on average ({size.fewest:,} to {size.most:,})"
    return f"{size.images:,} training images of {size.classes} classes, {size.per_class:,.4g} per class{spread}."


def _relative(size: Size) -> str:
    each = (f"{name} {size.images / count:.3g} ({count:,})" for name, count in size.learns.items())
    return f"Images per parameter that would learn: {', '.join(each)}."


def _quadrant(placement: Placement) -> str:
    size = " and ".join(placement.size.names)
    how_large = (
        size if len(placement.size.names) == 1 else f"between {size} ({SMALL} to {LARGE} images per class), so both are told"
    )
    if placement.similarity is None:
        return f"{how_large}; how similar is not known."
    shares = ", ".join(f"{name} {share:.0%}" for name, share in placement.shares.items() if share > 0)
    return f"{placement.similarity}, {how_large}. Share of the lift's bootstrap draws: {shares}."


def _advice(placement: Placement, size: str) -> list[tuple[str, str]]:
    title = f" if {size}" if len(placement.size.names) > 1 else ""
    if placement.similarity is None:
        return [(f"suggested{title}", "no strategy: without a lift there is no quadrant to look up.")]
    textbook = compose([f"quadrant={placement.similarity}_{size}"]).quadrant.textbook
    evidence = EVIDENCE[placement.similarity, size]
    figures = ", ".join(f"{name} {value}" for name, value in evidence.accuracy.items())
    return [
        (f"textbook{title}", f"{textbook}." if textbook else "none: it calls transfer unsuitable here and names no strategy."),
        (f"measured{title}", f"{figures} (percent, three seeds, the toy target of this quadrant; {STUDY})."),
        (f"suggested{title}", f"{evidence.suggested}: {evidence.why}."),
    ]
