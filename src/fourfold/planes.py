"""Grey images whose one plane is repeated in name only, so that it takes memory, and travels, once."""

from torch import Tensor


def narrow(images: Tensor) -> Tensor:
    """What lies in memory: of images [N, C, H, W] that repeat their first channel, [N, 1, H, W]; of others, all.

    `narrow(images).expand(images.shape)` are the images again. Repeated planes cannot be pinned, and a copy to a device would
    write them out on the host before.
    """
    return images[:, :1] if images.ndim == 4 and images.stride(1) == 0 else images
