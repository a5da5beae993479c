"""The chosen images of one part, as a map-style dataset of (pixels, target)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.data.pools import Pool
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

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.prepare(self.images[int(self.indices[position])]), self.labels[position]


class TensorSet(Dataset):
    """Images that lie in memory as the model wants them, uint8 [C, H, W]."""

    def __init__(self, images: Tensor, labels: Tensor, indices: np.ndarray, in_chans: int) -> None:
        self.images, self.indices = with_channels(images, in_chans), torch.as_tensor(indices)
        self.size = images.shape[-1]  # pixels, height = width
        self.labels = labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.images[self.indices[position]], self.labels[position]

    def take(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: (uint8 [N, C, H, W], targets)."""
        chosen = torch.tensor(positions)
        return self.images[self.indices[chosen]], self.labels[chosen]
