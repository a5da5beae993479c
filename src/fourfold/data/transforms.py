"""From a decoded image to the pixels that the model sees: uint8 and of the final size on the host, normalised on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from fourfold.config import ConfigError, TransformConfig, nearest

TENSOR_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")  # torchvision resizes tensors with these only


class Preprocessing(Protocol):
    """What the weights were trained with."""

    @property
    def size(self) -> int: ...  # pixels, height = width

    @property
    def resize(self) -> int: ...  # pixels of the short side before the centre crop

    @property
    def interpolation(self) -> str: ...

    @property
    def mean(self) -> tuple[float, ...]: ...  # per channel, of pixels in 0 to 1

    @property
    def std(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Prepare:
    """One image to uint8 [in_chans, H, W]. Float tensors are the user's own preparation and pass through."""

    in_chans: int
    steps: v2.Transform
    as_pil: bool  # whether the steps run on PIL images, whatever comes

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor) and image.is_floating_point():
            return image.float()
        image = with_channels(image, self.in_chans)
        if self.as_pil and isinstance(image, Tensor):
            image = functional.to_pil_image(image)
        image = self.steps(image)
        return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


def evaluation(preprocessing: Preprocessing, in_chans: int, collate: str) -> Prepare:
    """No randomness. `collate` says what becomes of the shape: stack resizes the short side and crops the centre, pad fits the
    whole image inside the size (so the sides differ), resize squeezes it to the size.

    Raises:
        ConfigError: for an interpolation that torchvision does not know.
    """
    interpolation = _interpolation(preprocessing)
    return Prepare(in_chans, _shape(preprocessing, interpolation, collate), interpolation.value not in TENSOR_INTERPOLATIONS)


def training(config: TransformConfig, preprocessing: Preprocessing, in_chans: int, collate: str) -> Prepare:
    """Augmentation, drawn from torch's global RNG.

    - none: as in evaluation.
    - light: shifts by up to an eighth of the side (reflected borders; not with collate=pad), and flips.
    - standard: a random crop of at least `min_scale` of the area (Szegedy et al. 2015, arXiv 1409.4842), and flips.
    - randaugment: standard, then Cubuk et al. 2020 (arXiv 1909.13719).
    - trivialaugment: standard, then Müller and Hutter 2021 (arXiv 2103.10158).

    Flips are left to right, and only with `hflip`.
    """
    interpolation = _interpolation(preprocessing)
    recipe = config.augmentation
    policies = {
        "randaugment": lambda: v2.RandAugment(magnitude=config.magnitude, interpolation=InterpolationMode.BILINEAR),
        "trivialaugment": lambda: v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
    }
    if recipe in policies and in_chans not in (1, 3):
        raise ConfigError(
            f"transform.augmentation={recipe} changes colours, but dataset.in_chans={in_chans}: choose none, light or standard"
        )
    steps: list[nn.Module]
    if recipe in ("none", "light"):
        steps = [_shape(preprocessing, interpolation, collate)]
        if recipe == "light" and collate != "pad":
            steps.append(v2.RandomCrop(preprocessing.size, padding=preprocessing.size // 8, padding_mode="reflect"))
    else:
        scale = (config.min_scale, 1.0)
        steps = [v2.RandomResizedCrop(preprocessing.size, scale=scale, interpolation=interpolation, antialias=True)]
    if config.hflip and recipe != "none":
        steps.append(v2.RandomHorizontalFlip())
    if recipe in policies:
        steps.append(policies[recipe]())
    # the policies are three times as fast on PIL images as on uint8 tensors (torchvision 0.29)
    return Prepare(in_chans, v2.Compose(steps), recipe in policies or interpolation.value not in TENSOR_INTERPOLATIONS)


def plain_square(config: TransformConfig | None, preprocessing: Preprocessing, images: Tensor, collate: str) -> bool:
    """Whether images [N, C, H, W] leave the transform (None: the evaluation's) as they came."""
    augmented = config is not None and config.augmentation != "none"
    height, width = images.shape[-2:]
    fits = height == width == preprocessing.size == preprocessing.resize
    return fits and not augmented and collate != "pad"  # whose batches carry a mask


def with_channels(image: Any, in_chans: int) -> Any:
    """Repeat grey, or average colour, into 3 or 1 channels; other counts must fit already.

    Args:
        image: PIL, or a uint8 tensor [..., C, H, W].

    Raises:
        ConfigError: if the channels do not fit.
    """
    if isinstance(image, Image.Image):
        if in_chans not in (1, 3):
            raise ConfigError(
                f"dataset.in_chans={in_chans}, but image files have 1 or 3 channels: choose one of these, or give tensors of "
                "your own with dataset=custom"
            )
        if image.mode.startswith("I"):  # 16 bits per pixel, which PIL would clip to 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image.convert("L" if in_chans == 1 else "RGB")
    channels = image.shape[-3]
    if channels == in_chans:
        return image
    if channels == 1:
        return image.expand(*image.shape[:-3], in_chans, *image.shape[-2:])
    if channels == 3 and in_chans == 1:
        return functional.rgb_to_grayscale(image)
    raise ConfigError(f"dataset.in_chans={in_chans}, but the images have {channels} channels: set dataset.in_chans={channels}")


class Normalizer(nn.Module):
    """uint8 [N, C, H, W] to float32 with the weights' mean and spread; float inputs pass as float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise where `inputs` are.

        Args:
            inputs: [N, C, H, W]. Where C is not the number of means (grey images, a pretrained model), their average is used.
            mask: bool [N, H, W]; what it leaves out becomes 0, the mean colour.
        """
        if self.mean.device != inputs.device:
            self.to(inputs.device)
        if inputs.is_floating_point():
            outputs = inputs.float()
        elif inputs.shape[1] == len(self.mean):
            outputs = (inputs.float() - self.mean) / self.std
        else:
            outputs = (inputs.float() - self.mean.mean()) / self.std.mean()
        return outputs if mask is None else outputs * mask[:, None]


def normalizer(preprocessing: Preprocessing) -> Normalizer:
    """The last step of every transform, done on the device: a byte per pixel travels there instead of four."""
    return Normalizer(preprocessing)


def mixer(config: TransformConfig, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412) or CutMix (Yun et al. 2019, arXiv 1905.04899); with both, one of them each
    time. Draws from torch's global RNG.

    Returns:
        None if both are off; else a function of (inputs [N, C, H, W], classes [N]) to (inputs, soft targets [N, num_classes]).
    """
    mixes: list[v2.Transform] = []
    if config.mixup:
        mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    if len(mixes) < 2:
        return mixes[0] if mixes else None
    return v2.RandomChoice(mixes)


def _shape(preprocessing: Preprocessing, interpolation: InterpolationMode, collate: str) -> v2.Transform:
    size = preprocessing.size
    if collate == "pad":
        return v2.Resize(size=None, max_size=size, interpolation=interpolation, antialias=True)
    if collate == "resize":
        return v2.Resize((size, size), interpolation=interpolation, antialias=True)
    resize = v2.Resize(preprocessing.resize, interpolation=interpolation, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(size)])


def _interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    known = [mode.value for mode in InterpolationMode]
    if preprocessing.interpolation not in known:
        raise ConfigError(
            f"model.interpolation={preprocessing.interpolation} is not one of {', '.join(known)}"
            f"{nearest(preprocessing.interpolation, known)}"
        )
    return InterpolationMode(preprocessing.interpolation)
