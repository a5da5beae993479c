"""How a placement comes about: features of the training images, of the pretrained network and of random ones, and a probe."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourfold import data, freeze, models
from fourfold.config import ConfigError, FreezeConfig, PlaceConfig, RunConfig
from fourfold.files import lock
from fourfold.models import frontier, norms
from fourfold.placement import Placement, Size, keep, recalled
from fourfold.ranks import joined
from fourfold.seeding import as_before, seed_everything
from fourfold.transferability import Prototypes, batch_norm_shift, lift, logme, prototypes

SAMPLE = 4  # images on which the cut before the head is tried
HEAD = "classifier_only"  # the strategy under which all in front of the head is frozen


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


def measure(config: RunConfig, strategies: Mapping[str, FreezeConfig]) -> Placement:
    """Measure where the training images stand; nothing is trained, no file written, and the test split stays sealed.

    Args:
        config: Validated; `model.weights` a tag or a file that is there.
        strategies: Those whose learning parameters are counted, `classifier_only` among them.

    Raises:
        ConfigError: see `refuse`; or the model has no layer before its head, or the data cannot be had.
    """
    refuse(config)
    began = time.perf_counter()
    with as_before(), joined(config.trainer.device) as ranks:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        seed_everything(config.seed)
        outline = data.outline(config.dataset, config.seed)

        def network(pretrained: bool) -> models.TransferModel:
            made = models.create(config.model, outline.num_outputs, in_chans=config.dataset.in_chans, pretrained=pretrained)
            made.net.to(ranks.device).eval()
            return made

        model = network(pretrained=True)
        splits, images, labels, batches = _looked_at(model, config, ranks.device)  # alike for all networks
        size = _size(splits, model, strategies, config)
        pretrained, shift = _features(model, strategies[HEAD], batches)
        random = []
        for _ in range(config.place.initialisations):
            untrained = network(pretrained=False)
            norms.recalibrate(untrained.net, batches)
            random.append(_features(untrained, strategies[HEAD], batches)[0])
        try:
            found = lift(pretrained, random, labels, seed=config.seed)
            known, *unknown = (logme(each, labels) for each in (pretrained, *random))
        except ValueError as error:
            raise ConfigError(f"{config.dataset.name} cannot be placed: {error}") from error
        shares = _shares(found.draws, config.place)
        gain, seconds = known - float(np.mean(unknown)), time.perf_counter() - began
        return Placement(found, known, gain, shift, len(images), size, shares, config.place, seconds)


def remembered(config: RunConfig, strategies: Mapping[str, FreezeConfig], file: Path) -> Placement:
    """`measure`, once for all processes that share `file`, so that they do not choose differently; the draws are not kept.

    Args:
        config: As for `measure`.
        strategies: As for `measure`.
        file: Of a study; see `placement.keep`.
    """
    with lock(file.with_name(f".{file.name}.lock")):
        if recalled(config, file) is None:
            keep(measure(config, strategies), config, file)
    kept = recalled(config, file)
    assert kept is not None
    return kept


def class_means(config: RunConfig, head_only: FreezeConfig) -> Prototypes:
    """Means of the features of each class [K, D], over the training images that `measure` would look at.

    Args:
        config: As for `measure`.
        head_only: The strategy under which all in front of the head is frozen.
    """
    refuse(config)
    with as_before(), joined(config.trainer.device) as ranks:
        seed_everything(config.seed)
        outputs = data.outline(config.dataset, config.seed).num_outputs
        model = models.create(config.model, outputs, in_chans=config.dataset.in_chans, pretrained=True)
        model.net.to(ranks.device).eval()
        _, labels, batches = _looked_at(model, config, ranks.device)[1:]
        return prototypes(_features(model, head_only, batches)[0], labels)


def _looked_at(
    model: models.TransferModel, config: RunConfig, device: torch.device
) -> tuple[data.Splits, Tensor, NDArray[np.int64], "_Prepared"]:
    """The splits, the first training images and their classes, and batches of them as the pretrained network knows images."""
    plain = replace(config.transform, augmentation="none")
    splits = data.load_splits(config.dataset, plain, model.preprocessing, config.seed)
    images, labels = _first(splits, config)
    parts = images.tensor_split(-(-len(images) // config.trainer.eval_batch_size))
    return splits, images, labels, _Prepared(parts, data.normalizer(model.preprocessing), device)


class _Prepared:
    """Batches of images as a network sees them, again and again; nearly equal in size, so that each counts the same."""

    def __init__(self, parts: Sequence[Tensor], prepare: Any, device: torch.device) -> None:
        self._parts, self._prepare, self._device = parts, prepare, device

    def __iter__(self) -> Iterator[Tensor]:
        return (self._prepare(part.to(self._device)) for part in self._parts)


def _first(splits: data.Splits, config: RunConfig) -> tuple[Tensor, NDArray[np.int64]]:
    """The first training images, uint8 [N, C, H, W], and their classes [N]; every prefix of them is stratified."""
    most = max(config.place.images, config.place.images_per_class * splits.num_outputs)
    size = config.trainer.eval_batch_size
    subset = config.dataset.loader.sampler == "subset"  # then a run would train on these alone
    loader = replace(config.dataset.loader, drop_last=False, persistent_workers=False)
    train = data.Batches(splits.train, batch_size=size, accumulate=1, loader=loader, seed=config.seed, shuffle=subset)
    read = [batch for step in train.at(0, stop_step=-(-most // size)) for batch in step]
    images, labels = (torch.cat([batch[part] for batch in read])[:most] for part in (0, 1))
    return images, labels.numpy()


def _size(splits: data.Splits, model: models.TransferModel, strategies: Mapping[str, FreezeConfig], config: RunConfig) -> Size:
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

    for norm in norms.batch_norms(net):
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


def _shares(draws: NDArray[np.float64], levels: PlaceConfig) -> dict[str, float]:
    if not len(draws):
        return {}
    near, far = float((draws >= levels.similar).mean()), float((draws < levels.different).mean())
    return {"similar": near, "middle": 1 - near - far, "different": far}
