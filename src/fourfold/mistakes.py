"""What a finished run answered to each test image, and pictures of the mistakes it was surest of.

Kept beside the result, for the report: `answers.npz` (target, predicted, confidence) and `mistakes.jpg` with `mistakes.json`.
"""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fourfold.data import Batches
from fourfold.files import replacing, write_json
from fourfold.ranks import Ranks

SHOWN = 8  # mistakes
SIDE = 64  # pixels of each picture
REMEMBERED = 256  # pictures of a dataset, 12 kB each at most: the runs of a sweep are wrong about the same images

_remembered: WeakKeyDictionary[Any, dict[int, Image.Image]] = WeakKeyDictionary()


class Answers:
    """The answers of a classifier, batch by batch."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take logits [N, K] and classes [N]."""
        confidence, predicted = outputs.float().softmax(dim=1).max(dim=1)
        self._batches.append((targets, predicted, confidence))  # fetched in the end: a look at each would wait for the device

    def keep(self, test: Batches, stop_step: int | None, classes: tuple[str, ...], folder: Path, ranks: Ranks) -> None:
        """Write all answers, and the surest mistakes with pictures as the network saw them (but not normalised).

        Every process brings what it was given of the images; the first one writes.

        Args:
            test: The images, in the order of this process's answers.
            stop_step: Where that order ended.
            classes: Their names.
            folder: Of the run.
            ranks: The processes.
        """
        place = torch.tensor(test.places(0, stop_step), dtype=torch.int64, device=ranks.device)
        own = [torch.cat(column) for column in zip(*self._batches, strict=True)] or [place, place, place.float()]
        order, *answers = (ranks.rows(column).cpu().numpy() for column in (place, *own))
        if not ranks.first:
            return
        target, predicted, confidence = (column[np.argsort(order)] for column in answers)
        with replacing(folder / "answers.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                target=target.astype(np.int32),
                predicted=predicted.astype(np.int32),
                confidence=confidence.astype(np.float16),
            )
        wrong = np.flatnonzero(target != predicted)
        surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN].tolist()
        if not surest:
            return
        with replacing(folder / "mistakes.jpg") as temporary:
            _strip(_pictures(test, surest)).save(temporary, format="JPEG", quality=90, subsampling=0)
        write_json(
            folder / "mistakes.json",
            [
                {
                    "image": position,
                    "target": classes[target[position]],
                    "predicted": classes[predicted[position]],
                    "confidence": round(float(confidence[position]), 4),
                }
                for position in surest
            ],
        )


def _strip(pictures: list[Image.Image]) -> Image.Image:
    """Side by side, in squares of SIDE pixels."""
    strip = Image.new("RGB", (SIDE * len(pictures), SIDE))
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * SIDE, 0))
    return strip


def _pictures(test: Batches, positions: list[int]) -> list[Image.Image]:
    """Of these images, SIDE pixels on the longer side; of other than one or three channels the first is shown."""
    known = _remembered.setdefault(test.dataset, {})
    if len(known) > REMEMBERED:
        known.clear()
    for position in positions:
        if position not in known:
            known[position] = _picture(test.read([position])[0][0])  # by itself: it is not padded to the others' size
    return [known[position] for position in positions]


def _picture(pixels: Tensor) -> Image.Image:
    if pixels.is_floating_point():  # handed on as the dataset gave them
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    rows = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()  # [C, H, W] -> [H, W, C]
    picture = Image.fromarray(rows).convert("RGB")
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
