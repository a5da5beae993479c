"""Digits at a dialled distance from the letters that the backbone was pretrained on: from `glyph_digits` to `textures`."""

import torch
from torch import Tensor

from fourfold.config import ConfigError, nearest
from fourfold.data.generated import glyphs, textures

TOWARDS = ("textures", "clutter")


def draw(towards: str, distance: float, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rendered digits that a colour texture covers the more, the larger the distance.

    Args:
        towards: `textures`: digit k under texture k, so that what tells the class passes from the one to the other, until at 1
            nothing is left of the digit. `clutter`: a texture of any class behind the digit, which alone tells the class.
        distance: 0 to 1; at 0 they are the images of `glyph_digits`.
        per_class: images of each class.
        generator: the only source of randomness; it advances.

    Returns:
        Images, uint8 [N, 3, 32, 32], and labels, int64 [N], class by class.

    Raises:
        ConfigError: `towards` is unknown, or the distance outside 0 to 1.
    """
    if towards not in TOWARDS:
        raise ConfigError(f"dataset.kwargs.towards={towards} is not one of {', '.join(TOWARDS)}{nearest(towards, TOWARDS)}")
    if not 0 <= distance <= 1:
        raise ConfigError(f"dataset.kwargs.distance={distance} is no distance: choose 0 (glyph_digits) to 1")
    digits, labels = glyphs.draw(glyphs.DIGITS, per_class, generator)
    if distance == 0:
        return digits, labels
    cover, _ = textures.draw(per_class, generator)
    near, far = digits.float(), cover.float()
    if towards == "clutter":
        # bright ink stays bright: where there is none, the texture shows through
        far = far[torch.randperm(len(far), generator=generator)]
        mixed = near + distance * far * (1 - near / 255)
    else:
        mixed = torch.lerp(near, far, distance)
    return mixed.round().clamp(0, 255).to(torch.uint8), labels
