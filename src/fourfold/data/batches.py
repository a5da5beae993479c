"""Batches of one epoch, the same ones whatever the number of workers, the step to begin at, or the number of processes."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fourfold.config import ConfigError, LoaderConfig, RunConfig
from fourfold.data import randomness
from fourfold.planes import narrow

Batch = tuple[Tensor, ...]  # (inputs, targets), or with collate=pad (inputs, targets, mask)
MASK = 2**64 - 1  # seeds may be negative, numpy's and struct's words may not
Share = list[list[int]]  # positions in the dataset of each micro-batch of one step, of this process


class Batches:
    """The optimizer steps of an epoch, each a list of micro-batches.

    The order of an epoch is a function of the seed and the epoch; the randomness of an image, of the seed, the epoch and its
    position. A step holds the next `batch_size` images of the order, of which this process takes every `world`-th.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        accumulate: int,
        loader: LoaderConfig,
        seed: int,
        shuffle: bool,
        weights: Sequence[float] | Tensor | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            dataset: Map-style, of (tensor, target). One with `take(positions, epoch) -> (inputs, targets)` gives whole batches
                at once; `labels` [N] are read for sampler=weighted.
            batch_size: Images of one step, over all processes and micro-batches.
            accumulate: Micro-batches of one step.
            shuffle: Whether this is training: follow the sampler, and leave out a last step of fewer than max(2, world) images,
                which batch norm or a process could not work with. Otherwise every image comes once, in order.
            weights: [N] for sampler=weighted; None weighs each image by one over the size of its class.
            rank: Which of `world` processes this is.

        Raises:
            ConfigError: if the sampler does not fit the dataset, or no step is left.
        """
        self.dataset, self.loader, self.seed, self.shuffle = dataset, loader, seed, shuffle
        self.batch_size, self.accumulate, self.rank, self.world = batch_size, accumulate, rank, world
        self._weights = _weights(dataset, weights) if shuffle and loader.sampler == "weighted" else None
        self._subset = _subset(dataset, loader.subset) if shuffle and loader.sampler == "subset" else None
        self.images = len(dataset if self._subset is None else self._subset)  # per epoch, before any is left out
        if shuffle and len(self) == 0:
            raise ConfigError(
                f"{self.images} training images make no step of trainer.batch_size={batch_size}: choose a smaller batch_size, "
                "dataset.loader.drop_last=false, or more images (at least 2, and one per process)"
            )
        self._reader = _Reader(dataset, seed, loader.collate)
        self._queue: list[tuple[int, list[int]]] = []
        self._workers = self._start_workers()

    def __len__(self) -> int:
        """Steps per epoch."""
        whole, rest = divmod(self.images, self.batch_size)
        if not self.shuffle:
            return whole + (rest > 0)
        return whole + (rest >= max(2, self.world) and not self.loader.drop_last)

    def images_in(self, step: int) -> int:
        """Images of the step with this index in an epoch, over all processes."""
        return min(self.batch_size, self.images - step * self.batch_size)

    def at(self, epoch: int, start_step: int = 0, stop_step: int | None = None) -> Iterator[list[Batch]]:
        """The steps of an epoch, this process's share of each (in evaluation it may be empty).

        One iteration at a time: workers are shared. It leaves the global generators of this process as they were.
        """
        steps = self._shares(epoch, start_step, stop_step)
        if hasattr(self.dataset, "ready"):  # what is kept is decoded before workers start
            self.dataset.ready([place for step in steps for piece in step for place in piece], self.loader.num_workers)
        batches = self._read([(epoch, positions) for step in steps for positions in step])
        for step in steps:
            yield [next(batches) for _ in step]

    def places(self, epoch: int, stop_step: int | None = None) -> list[int]:
        """Positions in the dataset of the images that `at` gives this process, in that order."""
        return [place for step in self._shares(epoch, 0, stop_step) for piece in step for place in piece]

    def shown(self, epochs: Iterable[int], stop_step: int | None) -> list[int] | None:
        """Positions in the dataset of the images that these epochs may show, in its order; None: it may be any."""
        if stop_step is None:
            return None if self._subset is None else sorted({*self._subset.tolist()})
        return sorted({place for epoch in epochs for place in self.order(epoch)[: stop_step * self.batch_size]})

    def _shares(self, epoch: int, start_step: int, stop_step: int | None) -> list[Share]:
        order = self.order(epoch)
        return [self._share(order, step) for step in range(len(self))[start_step:stop_step]]

    def read(self, positions: list[int]) -> Batch:
        """These images as one batch of the first epoch, read by this process now."""
        if hasattr(self.dataset, "ready"):
            self.dataset.ready(positions, 0)
        return _checked(self._reader.read(0, positions))

    def order(self, epoch: int) -> list[int]:
        """Positions in the dataset in the order in which an epoch sees them; a function of the seed and the epoch."""
        if not self.shuffle or self.loader.sampler == "sequential":
            return list(range(self.images))
        draws = np.random.Generator(np.random.PCG64([self.seed & MASK, epoch])).random(self.images)
        if self._weights is not None:  # with replacement
            return np.searchsorted(self._weights, draws, side="right").tolist()
        order = np.argsort(draws, kind="stable")
        return (order if self._subset is None else self._subset[order]).tolist()

    def _share(self, order: list[int], step: int) -> Share:
        """This process's micro-batches of a step; none is larger than those of a whole step by more than one image."""
        share = order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.world]
        size = max(1, self.batch_size // (self.world * self.accumulate))
        pieces = -(-len(share) // size)
        if size > 1 and len(share) > 1 and len(share) // pieces < 2:
            pieces -= 1  # rather one image more than a micro-batch of one, which batch norm could not work with
        return [piece.tolist() for piece in np.array_split(np.asarray(share), pieces)] if pieces else []

    def _read(self, wanted: list[tuple[int, list[int]]]) -> Iterator[Batch]:
        if self._workers is None:
            yield from (_checked(self._reader.read(epoch, positions)) for epoch, positions in wanted)
            return
        self._queue[:] = wanted
        for batch in self._workers:
            yield _wide(*_checked(batch))

    def _start_workers(self) -> DataLoader | None:
        """A DataLoader where it has something to do; it costs more than it gives when nothing runs beside or gets pinned."""
        pin = self.loader.pin_memory and torch.cuda.is_available()
        if not self.loader.num_workers and not pin:
            return None
        return DataLoader(
            self._reader,
            batch_sampler=self._queue,  # type: ignore[arg-type]  # read anew in every epoch; each item goes to __getitems__
            num_workers=self.loader.num_workers,
            persistent_workers=self.loader.persistent_workers,
            pin_memory=pin,
            collate_fn=_as_is,
            generator=torch.Generator(),  # the DataLoader would draw from the global one
        )


class _Reader(Dataset):
    """Reads whole micro-batches, in this process or in a worker."""

    def __init__(self, dataset: Any, seed: int, collate: str) -> None:
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, key: tuple[int, list[int]]) -> tuple[Batch, list[list[int]]] | ConfigError:
        """What a DataLoader hands over: planes that are repeated in name only once, since repeated ones cannot be pinned; and
        all shapes. An error is handed over as a value, because raising in a worker would bury its sentence in a traceback."""
        try:
            batch = self.read(*key)
        except ConfigError as error:
            return error
        return tuple(map(narrow, batch)), [[*part.shape] for part in batch]

    def read(self, epoch: int, positions: list[int]) -> Batch:
        if hasattr(self.dataset, "take"):
            return self.dataset.take(positions, epoch)
        samples = []
        with randomness.undisturbed():
            for position in positions:
                randomness.start(image_seed(self.seed, epoch, position))
                samples.append(self.dataset[position])
        return collated(samples, self.collate, getattr(self.dataset, "size", None))


def in_order(dataset: Any, config: RunConfig, rank: int = 0, world: int = 1) -> Batches:
    """Batches that evaluate: every image once, in its place, `trainer.eval_batch_size` at a time over all processes."""
    return Batches(
        dataset,
        batch_size=config.trainer.eval_batch_size,
        accumulate=1,
        loader=replace(config.dataset.loader, sampler="sequential", subset=None, drop_last=False),
        seed=config.seed,
        shuffle=False,
        rank=rank,
        world=world,
    )


def image_seed(seed: int, epoch: int, position: int) -> int:
    """The seed of one image's augmentation in one epoch."""
    words = struct.pack("<Q2q", seed & MASK, epoch, position)
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def collated(samples: Sequence[tuple[Any, Any]], collate: str, size: int | None = None) -> Batch:
    """Put (input, target) pairs into one batch.

    Args:
        samples: Inputs are tensors of one dtype.
        collate: `stack` wants equal shapes. `pad` adds zeros at the right and at the bottom, up to size x size or the largest
            image, and a mask. `resize` squeezes each image [C, H, W] to size x size.
        size: Pixels; None is the largest height and width in the batch.

    Returns:
        (inputs [N, ...], targets), and with `pad` mask bool [N, H, W], true where the image is.

    Raises:
        ConfigError: for different shapes with `stack`.
    """
    inputs = [sample[0] for sample in samples]
    targets = [sample[1] for sample in samples]
    labels = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets)
    if collate == "pad" and inputs[0].ndim == 3:
        padded, mask = _padded(inputs, size or 0)
        return padded, labels, mask
    if collate == "resize" and inputs[0].ndim == 3:
        inputs = _resized(inputs, size)
    shapes = {tuple(image.shape) for image in inputs}
    if len(shapes) > 1:
        raise ConfigError(
            f"dataset.loader.collate={collate} cannot put images of different shapes {sorted(shapes)[:2]} into one batch: "
            "choose dataset.loader.collate=pad or resize"
        )
    return torch.stack(inputs), labels


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weights that let every class count the same: images / (classes x images of the class), so that their mean over the
    training images is 1. A class without images gets 0.

    Args:
        counts: Training images of each class.

    Returns:
        float32 [K].
    """
    sizes = torch.tensor(counts, dtype=torch.float32)
    present = sizes > 0
    return torch.where(present, sizes.sum() / (present.sum() * sizes.clamp(min=1)), 0.0)


def _wide(batch: Batch, shapes: list[list[int]]) -> Batch:
    return tuple(part.expand(shape) for part, shape in zip(batch, shapes, strict=True))


def _as_is(batch: Any) -> Any:
    return batch


def _checked(batch: Any) -> Any:
    if isinstance(batch, ConfigError):
        raise batch
    return batch


def _weights(dataset: Any, weights: Sequence[float] | Tensor | None) -> np.ndarray:
    """Cumulative probabilities, [N]."""
    if weights is None:
        labels = getattr(dataset, "labels", None)
        if labels is None or labels.is_floating_point():
            raise ConfigError("dataset.loader.sampler=weighted balances classes, but this dataset has none: use random")
        weights = (1 / torch.bincount(labels).double())[labels]
    total = np.cumsum(np.asarray(weights, dtype=np.float64))
    total /= total[-1]
    total[-1] = 1.0
    return total


def _subset(dataset: Any, positions: Sequence[int] | None) -> np.ndarray:
    wanted = np.asarray(positions if positions is not None else [], dtype=np.int64)
    wrong = wanted[(wanted < 0) | (wanted >= len(dataset))]
    if len(wrong):
        raise ConfigError(
            f"dataset.loader.subset holds position {wrong[0]}, but there are {len(dataset)} training images: "
            f"choose 0 to {len(dataset) - 1}"
        )
    return wanted


def _padded(images: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    height = max(size, *(image.shape[1] for image in images))
    width = max(size, *(image.shape[2] for image in images))
    inputs = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for i, image in enumerate(images):
        _, h, w = image.shape
        inputs[i, :, :h, :w] = image
        mask[i, :h, :w] = True
    return inputs, mask


def _resized(images: list[Tensor], size: int | None) -> list[Tensor]:
    target = (size, size) if size else tuple(max(image.shape[axis] for image in images) for axis in (1, 2))
    return [image if image.shape[1:] == target else _resize(image, target) for image in images]


def _resize(image: Tensor, target: tuple[int, ...]) -> Tensor:
    """[C, H, W] -> [C, *target]; pixels stay in their dtype."""
    resized = functional.interpolate(image[None].float(), size=target, mode="bilinear", antialias=True)[0]
    return resized if image.is_floating_point() else resized.round().to(image.dtype)
