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

MARGIN = 1.125  # short side of an image kept for random crops, relative to the crop
LONGEST = 2  # long side of such an image, relative to the short one
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
    steps: nn.Module  # the same every time
    vary: nn.Module | None  # what is drawn anew each time
    as_pil: bool  # whether both run on PIL images, whatever comes

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor) and image.is_floating_point():
            return image.float()
        image = self.fixed(image)
        return pixels_of(image if self.vary is None else self.vary(image))

    def fixed(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """The image after `steps`, which `vary` goes on with."""
        image = with_channels(image, self.in_chans)
        if self.as_pil and isinstance(image, Tensor):
            image = functional.to_pil_image(image)
        return self.steps(image)


def pixels_of(image: Image.Image | Tensor) -> Tensor:
    """uint8 [C, H, W]."""
    return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


class Shift(nn.Module):
    """A shift by up to `padding` pixels with reflected borders, then perhaps a flip, of square images.

    The same pixels from the same random numbers as torchvision's RandomCrop and RandomHorizontalFlip, in a single gather.
    """

    def __init__(self, size: int, padding: int, hflip: bool) -> None:
        super().__init__()
        self.padding, self.hflip = padding, hflip
        self._reflected = np.pad(np.arange(size), padding, mode="reflect")  # position in the padded side -> in the image

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        """uint8 [C, size, size] of such a tensor or a PIL image."""
        pixels = pixels_of(image).numpy()
        size = pixels.shape[-1]
        # draws nothing where there is nothing to choose, as torchvision
        top, left = (int(torch.randint(0, 2 * self.padding + 1, ())) if self.padding else 0 for _ in range(2))
        rows, columns = self._reflected[top : top + size], self._reflected[left : left + size]
        if self.hflip and torch.rand(1) < 0.5:
            columns = columns[::-1]
        return torch.from_numpy(pixels[:, rows[:, None], columns])


def evaluation(preprocessing: Preprocessing, in_chans: int, collate: str) -> Prepare:
    """No randomness. `collate` says what becomes of the shape: stack resizes the short side and crops the centre, pad fits the
    whole image inside the size (so the sides differ), resize squeezes it to the size.

    Raises:
        ConfigError: for an interpolation that torchvision does not know.
    """
    interpolation = _interpolation(preprocessing)
    as_pil = interpolation.value not in TENSOR_INTERPOLATIONS
    return Prepare(in_chans, _shape(preprocessing, interpolation, collate), None, as_pil)


def training(
    config: TransformConfig, preprocessing: Preprocessing, in_chans: int, collate: str, *, resized: bool = False
) -> Prepare:
    """Augmentation, drawn from torch's global RNG.

    - none: as in evaluation.
    - light: shifts by up to an eighth of the side (reflected borders; not with collate=pad), and flips.
    - standard: a random crop of at least `min_scale` of the area (Szegedy et al. 2015, arXiv 1409.4842), and flips.
    - randaugment: standard, then Cubuk et al. 2020 (arXiv 1909.13719).
    - trivialaugment: standard, then Müller and Hutter 2021 (arXiv 2103.10158).

    Flips are left to right, and only with `hflip`. `resized` lets random crops come from an image that was made smaller before
    (`MARGIN`), and that is at most twice as long as it is short.
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
    as_pil = interpolation.value not in TENSOR_INTERPOLATIONS
    if recipe in ("none", "light"):
        shape = _shape(preprocessing, interpolation, collate)
        return Prepare(in_chans, shape, _small_changes(config, preprocessing.size, collate), as_pil)
    scale = (config.min_scale, 1.0)
    vary: list[nn.Module] = [v2.RandomResizedCrop(preprocessing.size, scale=scale, interpolation=interpolation, antialias=True)]
    if config.hflip:
        vary.append(v2.RandomHorizontalFlip())
    if recipe in policies:
        vary.append(policies[recipe]())
    # the policies are three times as fast on PIL images as on uint8 tensors (torchvision 0.29)
    as_pil |= recipe in policies
    if not resized:
        return Prepare(in_chans, nn.Identity(), v2.Compose(vary), as_pil)
    # as pictures, which a kept image becomes again: a crop of a tensor would be rounded otherwise
    smaller = Shrink(short_side(preprocessing), interpolation)
    return Prepare(in_chans, smaller, v2.Compose(vary), as_pil or in_chans in (1, 3))


def random_crops(config: TransformConfig) -> bool:
    """Whether the transform looks at another part of the image each time."""
    return config.augmentation not in ("none", "light")


def short_side(preprocessing: Preprocessing) -> int:
    """Pixels of the short side of an image that is kept for random crops."""
    return round(MARGIN * preprocessing.size)


class Shrink(nn.Module):
    """Brings the short side down to `short` pixels and the long one to twice that at most, by cutting both ends off."""

    def __init__(self, short: int, interpolation: InterpolationMode) -> None:
        super().__init__()
        self.short, self.interpolation = short, interpolation

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        height, width = functional.get_size(image)
        short, long = min(height, width), LONGEST * min(height, width)
        if max(height, width) > long:
            image = functional.center_crop(image, [min(height, long), min(width, long)])
        if short <= self.short:
            return image
        return functional.resize(image, [self.short], interpolation=self.interpolation, antialias=True)

    def extra_repr(self) -> str:
        return f"{self.short}, {self.interpolation.value}"


def _small_changes(config: TransformConfig, size: int, collate: str) -> nn.Module | None:
    """What `light` draws."""
    if config.augmentation == "none":
        return None
    if collate == "pad":  # whose images are not square
        return v2.RandomHorizontalFlip() if config.hflip else None
    return Shift(size, size // 8, config.hflip)


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
    raise ConfigError(
        f"dataset.in_chans={in_chans}, but the images, tensors {list(image.shape[-3:])}, have {channels} channels, which stand "
        f"first: set dataset.in_chans={channels} if that is right"
    )


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
