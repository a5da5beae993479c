"""Images made of noise around a mean that tells the class: for trying out a configuration without any data."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourfold.data.pools import Pool, Source

NOISE = 40.0  # standard deviation in grey values; the class means are drawn from 64 to 192


@dataclass(frozen=True)
class FakeImages:
    """Images drawn when asked for; each is a function of its place alone."""

    means: Tensor  # float [N, C], in grey values
    image_size: int
    first: int  # place of the first image in the sequence of all splits

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: int) -> Tensor:
        channels, side = self.means.shape[1], self.image_size
        generator = torch.Generator().manual_seed(self.first + index)
        noise = torch.randn(channels, side, side, generator=generator) * NOISE
        return (noise + self.means[index, :, None, None]).clamp(0, 255).byte()


def fake(*, task: str, size: int, test_size: int, num_classes: int, image_size: int, channels: int) -> Source:
    """Make a dataset whose labels can be learned from the mean colour.

    Args:
        task: classification (balanced classes), multilabel (each label in about half of the images), or regression.
        size: Training images.
        test_size: Test images; 0 brings no test split.
        num_classes: Classes or labels.
        image_size: Pixels, height = width.
        channels: 1 or 3.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    colours = rng.uniform(64, 192, (num_classes, channels))

    def pool(count: int, first: int) -> Pool:
        if task == "classification":
            labels = np.arange(count) % num_classes
            targets, means = torch.tensor(labels), colours[labels]
        elif task == "multilabel":
            present = rng.random((count, num_classes)) < 0.5
            targets, means = torch.tensor(present, dtype=torch.float32), 128 + (present @ (colours - 128)) / num_classes
        else:
            values = rng.random(count)
            targets, means = torch.tensor(values, dtype=torch.float32), 64 + 128 * np.repeat(values[:, None], channels, 1)
        return Pool(FakeImages(torch.tensor(means), image_size, first), targets)

    classes = () if task == "regression" else tuple(f"class_{i}" for i in range(num_classes))
    return Source(pool(size, 0), None, pool(test_size, size) if test_size else None, classes)
