"""Ten procedural colour textures: a class is a structure, in random colours, scale, place and (within 30 degrees) direction."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 32  # pixels of an image's side

# A texture: coordinates x, y [N, H, W] in periods, and a generator, to a height [N, H, W] between -1 and 1.
Texture = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def draw(per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a balanced set of textures, each with its own colours, scale, direction, light and noise.

    Args:
        per_class: images of each class.
        generator: the only source of randomness; it advances.

    Returns:
        Images, uint8 [N, 3, 32, 32], and labels, int64 [N], class by class.
    """
    heights = torch.cat([texture(*_plane(per_class, generator), generator) for texture in TEXTURES.values()])
    return _paint(heights, generator), torch.arange(len(TEXTURES)).repeat_interleave(per_class)


def _uniform(low: float, high: float, n: int, generator: torch.Generator) -> Tensor:
    """Random numbers [N, 1, 1], to be broadcast over pixels."""
    return low + (high - low) * torch.rand(n, 1, 1, generator=generator)


def _plane(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates [N, H, W] of n planes at random angles and places, from 2.5 to 5 periods across an image."""
    axis = torch.linspace(-0.5, 0.5, SIDE)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    angle, periods = _uniform(-math.pi / 6, math.pi / 6, n, generator), _uniform(2.5, 5.0, n, generator)
    x = periods * (across * angle.cos() + down * angle.sin()) + _uniform(0, 1, n, generator)
    y = periods * (down * angle.cos() - across * angle.sin()) + _uniform(0, 1, n, generator)
    return x, y


def _paint(heights: Tensor, generator: torch.Generator) -> Tensor:
    """Heights [N, H, W] between two random colours under slanting light, with noise: uint8 [N, 3, H, W]."""
    n = len(heights)
    low, high = torch.rand(2, n, 3, 1, 1, generator=generator)
    slope = torch.randn(n, 3, 2, generator=generator) * 0.1
    axis = torch.linspace(-0.5, 0.5, SIDE)
    light = slope[..., :1, None] * axis[:, None] + slope[..., 1:, None] * axis  # [N, 3, H, W]
    noise = _uniform(0, 0.1, n, generator)[:, None] * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    colour = low + (high - low) * (heights[:, None] + 1) / 2
    return ((colour + light + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _wave(phase: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * phase)


def _smooth_noise(n: int, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random hills [N, H, W], about `cells` across an image, of unit variance."""
    hills = torch.randn(n, 1, cells + 1, cells + 1, generator=generator)
    hills = F.interpolate(hills, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[:, 0]
    return hills / hills.std(dim=(1, 2), keepdim=True)


def _stripes(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return _wave(x)


def _plaid(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return (_wave(x) + _wave(y)) / 2


def _checks(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.tanh(4 * _wave(x / 1.5) * _wave(y / 1.5))


def _zigzag(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return _wave(x + (y % 1 - 0.5).abs() * 1.5)


def _waves(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return _wave(x + 0.3 * _wave(y / 2))


def _bricks(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    course = y.floor()
    joint = torch.minimum((y % 1 - 0.5).abs(), ((x / 2 + 0.5 * (course % 2)) % 1 - 0.5).abs() * 2)
    return torch.tanh(12 * (joint - 0.15))


def _dots(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.tanh(10 * (0.32 - torch.hypot(x % 1 - 0.5, y % 1 - 0.5)))


def _rings(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return _wave(torch.hypot(x % 3 - 1.5, y % 3 - 1.5) * 1.2)


def _marble(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return _wave(x + 0.35 * _smooth_noise(len(x), 4, generator))


def _clouds(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.tanh(_smooth_noise(len(x), 7, generator))


TEXTURES: dict[str, Texture] = {
    "stripes": _stripes,
    "plaid": _plaid,
    "checks": _checks,
    "zigzag": _zigzag,
    "waves": _waves,
    "bricks": _bricks,
    "dots": _dots,
    "rings": _rings,
    "marble": _marble,
    "clouds": _clouds,
}
