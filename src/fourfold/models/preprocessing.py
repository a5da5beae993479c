"""How images have to look for a set of weights: taken from the weights' own metadata, overridden by the configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourfold.config import ConfigError, ModelConfig, nearest

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every image before the network sees it."""

    size: int  # pixels: height and width of what the network sees
    resize: int  # pixels: the short side before the centre crop
    interpolation: str  # one of INTERPOLATIONS
    mean: tuple[float, ...]  # one per channel, of images in [0, 1]
    std: tuple[float, ...]


def from_torchvision(transforms: Any) -> Preprocessing:
    """The metadata of torchvision weights: what `Weights.transforms()` returns."""
    return Preprocessing(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def from_timm(data_config: Mapping[str, Any]) -> Preprocessing:
    """The metadata of timm weights: what `timm.data.resolve_model_data_config` returns."""
    size = data_config["input_size"][-1]
    return Preprocessing(
        size=size,
        resize=math.floor(size / data_config["crop_pct"]),
        interpolation=data_config["interpolation"],
        mean=tuple(data_config["mean"]),
        std=tuple(data_config["std"]),
    )


def override(base: Preprocessing, config: ModelConfig, in_chans: int) -> Preprocessing:
    """`base` with what the configuration sets, for `in_chans` channels.

    A new size keeps the share of the image that the centre crop shows, unless `crop_pct` says otherwise. Statistics given for
    another number of channels are averaged.

    Raises:
        ConfigError: a size, share, name or statistic that no image can have.
    """
    size = config.image_size or base.size
    resize = round(base.resize * size / base.size)
    if config.crop_pct is not None:
        if not 0 < config.crop_pct <= 1:
            raise ConfigError(f"model.crop_pct={config.crop_pct} is out of range: choose a number above 0 and at most 1")
        resize = math.floor(size / config.crop_pct)
    interpolation = config.interpolation or base.interpolation
    if interpolation not in INTERPOLATIONS:
        hint = nearest(interpolation, INTERPOLATIONS)
        raise ConfigError(f"model.interpolation={interpolation} is not one of {', '.join(INTERPOLATIONS)}{hint}")
    if size < 1:
        raise ConfigError(f"model.image_size={size} is not a number of pixels: choose 1 or more")
    mean = _statistic("mean", config.mean, base.mean, in_chans)
    std = _statistic("std", config.std, base.std, in_chans)
    if min(std) <= 0:
        raise ConfigError(f"model.std={list(std)} divides by zero or less: choose positive numbers")
    return Preprocessing(size, resize, interpolation, mean, std)


def _statistic(key: str, given: list[float] | None, base: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    if given is not None and len(given) not in (1, in_chans):
        raise ConfigError(
            f"model.{key}={given} has {len(given)} numbers, but dataset.in_chans={in_chans}: give 1 or {in_chans}"
        )
    values = tuple(base if given is None else given)
    return values if len(values) == in_chans else (sum(values) / len(values),) * in_chans
