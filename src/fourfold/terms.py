"""What is added to a run's training loss, the regularizer's term and the adaptation's, and the images that they look at."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fourfold import adaptation, data, models, regularizers
from fourfold.config import ConfigError, RunConfig
from fourfold.loop import Kit, Penalty, ready

WHOLE_BATCH = ("regularizer=bss", "adapt=coral", "adapt=mmd", "adapt=dann")  # terms that are no mean over images


def create(
    config: RunConfig, model: models.TransferModel, train: data.Batches, unlabelled: data.Batches | None, kit: Kit
) -> Penalty | None:
    """What is added to the loss: the regularizer's term, then the adaptation's, which runs the network once more.

    Raises:
        ConfigError: a term looks at a micro-batch as a whole, and its processes would not have one each.
    """
    size, world = config.trainer.batch_size, kit.ranks.world
    for term in (f"regularizer={config.regularizer.name}", f"adapt={config.adapt.name}"):
        if world > 1 and term in WHOLE_BATCH and (config.trainer.accumulate > 1 or size % world):
            raise ConfigError(
                f"{term} compares the images of a step with each other, but trainer.batch_size={size} with trainer.accumulate="
                f"{config.trainer.accumulate} is not one micro-batch for each of {world} processes: choose accumulate=1 and a "
                f"multiple of {world}"
            )

    def sample(count: int) -> tuple[Tensor, Tensor]:  # a fair one: see `Manifest`
        images, targets, *_ = train.read([*range(min(count, train.images))])
        return ready(images, kit), targets.to(kit.ranks.device)

    def whole() -> Iterator[tuple[Tensor, Tensor]]:
        plain = replace(config.transform, augmentation="none", hflip=False)
        images = data.in_order(data.load_splits(config.dataset, plain, model.preprocessing, config.seed).train, config)
        chosen = train.loader.subset or [*range(images.images)]
        for start in range(0, len(chosen), images.batch_size):
            some, targets, *_ = images.read(chosen[start : start + images.batch_size])
            yield ready(some, kit), targets.to(kit.ranks.device)

    def draw(count: int) -> Tensor:
        assert unlabelled is not None
        chosen = kit.ranks.share(torch.randint(unlabelled.images, (max(2, count),)))
        return ready(unlabelled.read(chosen.tolist())[0], kit)

    both = [
        regularizers.create(config.regularizer, model, sample, whole, kit.ranks),
        adaptation.create(config.adapt, model.net, model.heads[0], draw, kit, config.trainer.epochs * train.images),
    ]
    wanted = [term for term in both if term is not None]
    if len(wanted) < 2:
        return wanted[0] if wanted else None
    return lambda inputs, targets: torch.stack([term(inputs, targets) for term in wanted]).sum()


def unlabelled(config: RunConfig, splits: data.Splits, model: models.TransferModel) -> data.Batches | None:
    """The images that domain adaptation uses, the same in every process."""
    if config.adapt.name == "none":
        return None
    images = data.load_unlabelled(config.dataset, config.adapt.images, model.preprocessing, config.seed, splits.manifest)
    return data.in_order(images, config)


def whole_batches(batches: data.Batches) -> Iterator[Tensor]:
    """Images in batches of one size: the last is left out where it is smaller than those before it."""
    for i, ((images, *_),) in enumerate(batches.at(0)):
        if i == 0 or len(images) == batches.batch_size:
            yield images
