"""The chosen images of one part, as a map-style dataset of (pixels, target)."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.data.pools import Pool, stamp
from fourfold.data.transforms import Prepare, with_channels


class ImageSet(Dataset):
    """Images that are decoded and transformed one by one, uint8 [C, H, W], when asked for.

    Random transforms draw from torch's global RNG: `Batches` seeds it for each image.
    """

    def __init__(self, pool: Pool, indices: np.ndarray, prepare: Prepare, size: int) -> None:
        self.images, self.indices, self.prepare = pool.images, indices, prepare
        self.size = size  # pixels, height = width of the model's input
        self.labels = pool.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def stamp(self) -> str:
        """Of all images of the official split, when somebody first asks: which they are, as far as is told without decoding."""
        return stamp(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.prepare(self.images[int(self.indices[position])]), self.labels[position]


class TensorSet(Dataset):
    """Images that lie in memory as the model wants them, uint8 [C, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor, indices: np.ndarray, in_chans: int) -> None:
        grey = images.shape[1] == 1 or images.stride(1) == 0  # one plane, perhaps repeated in name only
        self._pixels = (images[:, :1] if grey else with_channels(images, in_chans)).numpy()
        self.in_chans, self.indices = in_chans, indices
        self.size = images.shape[-1]  # pixels, height = width
        self.labels = labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def stamp(self) -> str:
        """Of all images of the official split."""
        return stamp(torch.from_numpy(self._pixels))

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.take([position], 0)
        return inputs[0], targets[0]

    def take(self, positions: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """A whole batch at once: (uint8 [N, C, H, W], targets). Repeated grey planes share their memory."""
        # gathered by numpy: torch would wake its threads for it, which costs up to milliseconds on a busy machine
        pixels = torch.from_numpy(self._pixels[self.indices[positions]])
        return with_channels(pixels, self.in_chans), self.labels[positions]
