"""What a run costs beside its arithmetic: full fine-tuning of resnet18 at 128 px on JPEGs, against bare loops.

    bare tensors      a minimal loop in fp32 on images that lie decoded in memory
    bare DataLoader   the same on the files: decode, resize, crop, shift and flip by torchvision, 0 workers
    Fourfold          fourfold.run.run, its own first epoch and later ones, without trackers
    Fourfold auto     the same with trainer.precision=auto and trainer.channels_last=auto

All shift by up to an eighth with reflected borders and flip (transform=light). CPU seconds of an epoch's training, by turns,
each in a process of its own; Fourfold's include its checkpoints and its log, and its validation apart. Ratios are of the same
round.

    python scripts/bench/full_finetuning.py [--images 1000] [--epochs 3] [--rounds 2] [--accuracy]
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from photographs import photographs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fourfold.compose import compose
from fourfold.task import execute

SIZE, BATCH, LR = 128, 32, 0.01
RUN = (
    "dataset=image_folder", "model=resnet18", f"model.image_size={SIZE}", "model.crop_pct=1.0", "freeze=from_scratch",
    "transform=light", "optimizer=sgd", f"optimizer.lr={LR}", "optimizer.weight_decay=0", "scheduler=constant",
    f"trainer.batch_size={BATCH}", "trainer.device=cpu", "trainer.progress=false", "trainer.threads=1", "logger=none",
    "dataset.val_fraction=0.05", "dataset.test_fraction=0.05",
)  # fmt: skip
AUTO = ("trainer.precision=auto", "trainer.channels_last=auto")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
SHAPE = [v2.Resize(SIZE, antialias=True), v2.CenterCrop(SIZE)]
LIGHT = [v2.RandomCrop(SIZE, padding=SIZE // 8, padding_mode="reflect"), v2.RandomHorizontalFlip()]


def bare(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], epochs: int) -> list[float]:
    """CPU seconds of each epoch of the shortest loop that trains; `batches` gives uint8 or normalised images."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    net.train()
    marks = [time.process_time()]
    for _ in range(epochs):
        for images, labels in batches():
            inputs = (images.float() / 255 - MEAN) / STD if images.dtype == torch.uint8 else images
            loss = nn.functional.cross_entropy(net(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        marks.append(time.process_time())
    return [end - begin for begin, end in pairwise(marks)]


def on_tensors(images: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Images [N, 3, SIZE + 2 pad, ...] whose borders are reflected already: a crop is a slice."""
    shift = images.shape[-1] - SIZE
    for rows in torch.randperm(len(images)).split(BATCH):
        tops, lefts, flips = (torch.randint(0, high, (len(rows),)).tolist() for high in (shift + 1, shift + 1, 2))
        crops = [images[row, :, y : y + SIZE, x : x + SIZE] for row, y, x in zip(rows.tolist(), tops, lefts, strict=True)]
        yield torch.stack([c.flip(-1) if f else c for c, f in zip(crops, flips, strict=True)]), labels[rows]


def ours(root: Path, folder: Path, epochs: int, *overrides: str) -> tuple[list[float], dict[str, Any]]:
    """CPU seconds from the end of one epoch's training to the end of the next, less validation; and the result."""
    import fourfold.run as room

    spent: list[float] = []
    validated: list[float] = []

    def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                into.append(time.process_time() - started)

        return call

    before = room._train, room._validate
    room._train, room._validate = timed(room._train, spent), timed(room._validate, validated)
    config = compose([*RUN, *overrides, f"dataset.root={root}", f"trainer.epochs={epochs}", f"paths.cache={folder}/cache"])
    started = time.process_time()
    try:
        result = execute(config, folder / "run")
    finally:
        room._train, room._validate = before
    result["cpu"] = {"whole": time.process_time() - started, "validation": sum(validated)}
    return spent, result


def told(name: str, values: list[float], unit: str = "") -> None:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    print(f"{name:58} {statistics.mean(values):7.2f}{spread} (n={len(values)}){unit}", flush=True)


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns in a process of its own: a run changes how its process handles memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet) as pool:
        return pool.submit(function, *args).result()


def quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)


def trained_on(root: Path) -> int:
    """Images that Fourfold's validation and test leave, so that all train on as many."""
    return round(0.9025 * len(ImageFolder(root).samples))


def bare_tensors(root: Path, epochs: int) -> list[float]:
    from fourfold.data.pools import read_image

    shape, some = v2.Compose(SHAPE), ImageFolder(root).samples[: trained_on(root)]
    pixels = torch.stack([v2.functional.pil_to_tensor(shape(read_image(Path(path)).convert("RGB"))) for path, _ in some])
    labels = torch.tensor([label for _, label in some])
    padded = nn.functional.pad(pixels.float(), (SIZE // 8,) * 4, mode="reflect").to(torch.uint8)
    return bare(lambda: on_tensors(padded, labels), epochs)


def bare_loader(root: Path) -> float:
    normal = v2.Compose([*SHAPE, *LIGHT, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    files = torch.utils.data.Subset(ImageFolder(root, normal), range(trained_on(root)))
    return bare(lambda: DataLoader(files, batch_size=BATCH, shuffle=True), 1)[0]


def costs(root: Path, epochs: int, rounds: int) -> None:
    fewer = trained_on(root)
    ratios: dict[str, list[float]] = {}
    for i in range(rounds):
        tensors, loader = apart(bare_tensors, root, epochs), apart(bare_loader, root)
        for name, overrides in (("fp32", ()), ("auto", AUTO)):
            with tempfile.TemporaryDirectory() as folder:
                spent, result = apart(ours, root, Path(folder), epochs, *overrides)
            images = result["images"]["train"] / fewer
            if i == 0:
                how = f"{result['precision']}{' channels_last' if result['channels_last'] else ''}"
                print(f"Fourfold {name}: {how}, {result['images']['train']} images against {fewer}", flush=True)
            limit = statistics.mean(tensors[1:] or tensors) * images
            for label, value in (
                (f"{name}: later epochs over bare tensors in fp32", statistics.mean(spent[1:]) / limit),
                (f"{name}: first epoch, decoding included, over bare DataLoader", spent[0] / (loader * images)),
                (f"{name}: CPU s of an epoch, first", spent[0]),
                (f"{name}: CPU s of an epoch, later", statistics.mean(spent[1:])),
                (f"{name}: CPU s of all validations", result["cpu"]["validation"]),
                (f"{name}: CPU s of the whole run", result["cpu"]["whole"]),
            ):
                ratios.setdefault(label, []).append(value)
        ratios.setdefault("bare tensors: CPU s of an epoch", []).append(statistics.mean(tensors[1:] or tensors))
        ratios.setdefault("bare DataLoader: CPU s of its epoch", []).append(loader)
        print(f"round {i + 1} done, load {os.getloadavg()[0]:.1f}", flush=True)
    for label, values in ratios.items():
        told(label, values)


def accuracies(root: Path, epochs: int) -> None:
    for name, overrides in (("fp32", ()), ("auto", AUTO)):
        values = []
        for seed in range(3):
            with tempfile.TemporaryDirectory() as folder:
                _, result = ours(root, Path(folder), epochs, *overrides, f"seed={seed}", "dataset.val_fraction=0.3")
            values.append(result["metrics"]["val"]["acc"])
        told(f"{name}: best validation accuracy over 3 seeds", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3, help="of each run; 2 or more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--accuracy", action="store_true", help="of fp32 and auto over 3 seeds, instead of the costs")
    asked = parser.parse_args()
    quiet()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        root = photographs(Path(folder, "photographs"), asked.images)
        if asked.accuracy:
            accuracies(root, asked.epochs)
        else:
            costs(root, asked.epochs, asked.rounds)


if __name__ == "__main__":
    main()
