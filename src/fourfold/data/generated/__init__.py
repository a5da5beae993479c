"""The embedded domains: images made on the spot, so that a whole study runs without network, account or download.

`glyphs` is the source that a backbone is pretrained on (75 letters); `glyph_digits` (near: the same fonts, unseen characters),
`digits` (middle: handwritten) and `textures` (far) are the targets. docs/embedded_study.md says what they can and cannot show.
`dialled` lies anywhere between the near and the far one, for whoever wants to hold a measure of similarity against a dial.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourfold.config import ConfigError, nearest
from fourfold.data.generated import dialled, glyphs, handwritten, textures

Split = tuple[Tensor, Tensor]  # images uint8 [N, 3, 32, 32], labels int64 [N]


def load(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Make the images of an embedded domain: the same arguments give the same images, whatever ran before.

    Args:
        name: one of `DOMAINS`.
        kwargs: `seed`, the number of images per class of each split and what else is in `conf/dataset/<name>.yaml`.

    Returns:
        `train`, `test` and, for `glyphs`, `val`: (images uint8 [N, 3, 32, 32], labels int64 [N]); `classes`: their names. The
        tensors are shared by all callers in this process, and grey ones repeat one plane in memory: do not write to them.

    Raises:
        ConfigError: for an unknown domain, and for arguments that do not fit it.
    """
    if name not in DOMAINS:
        raise ConfigError(f"dataset.name={name} is not one of {', '.join(DOMAINS)}{nearest(name, DOMAINS)}")
    expected = set(inspect.signature(DOMAINS[name]).parameters)
    if set(kwargs) != expected:
        raise ConfigError(
            f"dataset.kwargs has {sorted(kwargs)}, but dataset={name} takes {sorted(expected)}: give exactly these"
        )
    return dict(_load(name, tuple(sorted(kwargs.items()))))


@functools.cache
def _load(name: str, kwargs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return DOMAINS[name](**dict(kwargs))


def _generator(*words: object) -> torch.Generator:
    """A generator of its own for each domain, split and seed: none disturbs another, or torch's global one."""
    digest = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _glyphs(seed: int, train: int, val: int, test: int) -> dict[str, Any]:
    sizes = {"train": train, "val": val, "test": test}
    splits = {split: glyphs.draw(glyphs.LETTERS, n, _generator("glyphs", split, seed)) for split, n in sizes.items()}
    return {**splits, "classes": glyphs.LETTERS}


def _glyph_digits(seed: int, train: int, test: int) -> dict[str, Any]:
    sizes = {"train": train, "test": test}
    splits = {split: glyphs.draw(glyphs.DIGITS, n, _generator("glyph_digits", split, seed)) for split, n in sizes.items()}
    return {**splits, "classes": glyphs.DIGITS}


def _digits(seed: int, train: int) -> dict[str, Any]:
    pool, test = handwritten.divide(train, _generator("digits", seed))
    return {"train": pool, "test": test, "classes": glyphs.DIGITS}


def _textures(seed: int, train: int, test: int) -> dict[str, Any]:
    sizes = {"train": train, "test": test}
    splits = {split: textures.draw(n, _generator("textures", split, seed)) for split, n in sizes.items()}
    return {**splits, "classes": tuple(textures.TEXTURES)}


def _dialled(seed: int, train: int, test: int, distance: float, towards: str) -> dict[str, Any]:
    # the words of glyph_digits: at every distance the same digits, so that two distances differ in nothing else
    sizes = {"train": train, "test": test}
    splits = {split: dialled.draw(towards, distance, n, _generator("glyph_digits", split, seed)) for split, n in sizes.items()}
    return {**splits, "classes": glyphs.DIGITS}


DOMAINS: dict[str, Callable[..., dict[str, Any]]] = {
    "glyphs": _glyphs,
    "glyph_digits": _glyph_digits,
    "digits": _digits,
    "textures": _textures,
    "dialled": _dialled,
}
