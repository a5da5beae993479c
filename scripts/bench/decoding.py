"""Which decoder: Pillow or torchvision's decode_jpeg, in CPU milliseconds an image, and how far their pixels are apart.

python scripts/bench/decoding.py [--images 200] [--rounds 5]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from photographs import photographs
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import functional


def by_pillow(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return functional.pil_to_tensor(image.convert("RGB"))


def by_torchvision(path: Path) -> torch.Tensor:
    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)


def milliseconds(decode: Callable[[Path], torch.Tensor], paths: list[Path]) -> float:
    started = time.process_time()
    for path in paths:
        decode(path)
    return 1000 * (time.process_time() - started) / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted(photographs(Path(folder), asked.images).rglob("*.jpg"))
        taken: dict[str, list[float]] = {"Pillow": [], "decode_jpeg": []}
        for _ in range(asked.rounds):  # by turns, so that both meet the same neighbours
            taken["Pillow"].append(milliseconds(by_pillow, paths))
            taken["decode_jpeg"].append(milliseconds(by_torchvision, paths))
        apart = [(by_pillow(path).int() - by_torchvision(path).int()).abs() for path in paths]
    print(f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}, load {os.getloadavg()[0]:.1f}")
    for name, times in taken.items():
        print(f"{name:12} {statistics.mean(times):6.2f} +- {statistics.stdev(times):.2f} CPU ms an image (n={asked.rounds})")
    ratios = [one / other for one, other in zip(taken["decode_jpeg"], taken["Pillow"], strict=True)]
    print(f"decode_jpeg over Pillow {statistics.mean(ratios):.2f} +- {statistics.stdev(ratios):.2f}")
    same = np.mean([bool((each == 0).all()) for each in apart])
    differing = np.mean([float((each > 0).float().mean()) for each in apart])
    print(
        f"identical images {same:.0%}, pixels that differ {differing:.1%}, by at most {max(int(each.max()) for each in apart)}"
    )


if __name__ == "__main__":
    main()
