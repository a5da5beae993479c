"""Photographs that the benchmarks make for themselves: smooth random images in JPEG files, one folder per class."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10


def photographs(root: Path, count: int, seed: int = 0) -> Path:
    """Write `count` JPEGs of about 256 px (quality 90), the class in their colours, and return their folder."""
    rng = np.random.default_rng(seed)
    tints = np.random.default_rng(1).integers(60, 196, (CLASSES, 3))
    for i in range(count):
        label = i % CLASSES
        coarse = np.clip(rng.normal(tints[label], 60, (8, 8, 3)), 0, 255).astype(np.uint8)
        height, width = rng.integers(230, 290, 2)
        path = root / f"class{label}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, quality=90)
    return root
