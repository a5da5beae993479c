"""How cost and memory grow: with the images of one run, and with the runs of a sweep. Each row is a process of its own.

The backbone of the embedded study on 32 px noise, fine-tuned whole (images) or by its head alone (runs), on one thread. CPU
seconds of the process, imports included, and its largest resident memory. Cost per image is of an image in an epoch, between
this row and the one before, so that what is paid once falls out; so is the cost per run.

Then heads: what each further run of a sweep over learning rates costs, and what the same head costs alone: its optimizer and
schedule in a bare loop of torch on features in memory, without validation, test, checkpoint or record. Last the same for larger
backbones, beside one pass of the images through the backbone, which no further run may take.

    python scripts/bench/scaling.py [--images 100 1000 10000] [--runs 1 8 64] [--heads 1000 10000] [--backbones resnet18]
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torchvision

EPOCHS = 2
HEAD_EPOCHS, FEATURES, CLASSES, BATCH = 10, 64, 10, 32
SIZE, FEW = 64, 100  # pixels and images, for larger backbones
HEADS = (8, 136)  # runs of the two sweeps whose difference is what further runs cost
COMMON = (
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.val_size=50", "model=micro_resnet", "trainer.device=cpu",
    "trainer.threads=1", "trainer.progress=false", f"trainer.epochs={EPOCHS}", "logger=none",
)  # fmt: skip


def measured(*words: str, cache: str | None = None) -> tuple[float, float]:
    """CPU seconds and megabytes of `fourfold`, with its children; what it stores for others goes into `cache`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = (f"paths.outputs={folder}/out", f"paths.cache={cache or f'{folder}/cache'}")
        command = [sys.executable, "-m", "fourfold", *COMMON, *words, *paths]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def table(title: str, unit: str, counts: Sequence[int], rows: Sequence[tuple[float, float]], each: float) -> None:
    print(f"\n{title:>10} {'CPU s':>8} {'MB':>6}   CPU ms per {unit}")
    last = None
    for count, (seconds, megabytes) in zip(counts, rows, strict=True):
        growth = "" if last is None else f"{1000 * (seconds - last[1]) / (count - last[0]) / each:10.2f}"
        print(f"{count:10} {seconds:8.1f} {megabytes:6.0f}   {growth}", flush=True)
        last = (count, seconds)


def further(images: int, *words: str) -> float:
    """CPU seconds of each further run of a sweep over learning rates of a head."""
    size = (f"dataset.kwargs.size={images + 50}", f"trainer.epochs={HEAD_EPOCHS}", f"trainer.batch_size={BATCH}")
    rates = (",".join(f"{rate * 1e-3:.3g}" for rate in range(1, count + 1)) for count in (1, *HEADS))
    with (
        tempfile.TemporaryDirectory() as cache
    ):  # the first stores the activations, which takes longer than all that is compared
        _, fewer, more = (measured(*words, *size, "optimizer=sgd", f"optimizer.lr={some}", cache=cache)[0] for some in rates)
    return (more - fewer) / (HEADS[1] - HEADS[0])


def alone(images: int, width: int = FEATURES) -> float:
    """CPU seconds of one head on features of a width in memory, the mean of several."""
    torch.set_num_threads(1)
    features, labels = torch.randn(images, width), torch.randint(0, CLASSES, (images,))
    for count in (1, 5):  # the first warms up
        began = time.process_time()
        for _ in range(count):
            layer = torch.nn.Linear(width, CLASSES)
            groups = [{"params": [layer.weight], "weight_decay": 1e-4}, {"params": [layer.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, HEAD_EPOCHS * -(-images // BATCH))
            for _ in range(HEAD_EPOCHS):
                for chosen in torch.randperm(images).split(BATCH):
                    torch.nn.functional.cross_entropy(layer(features[chosen]), labels[chosen]).backward()
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
        took = (time.process_time() - began) / count
    return took


def once(backbone: str) -> tuple[float, int]:
    """CPU seconds of one pass of images through a backbone of torchvision, and the width of what its head reads."""
    torch.set_num_threads(1)
    net = torchvision.models.get_model(backbone).eval()
    began = time.process_time()
    with torch.inference_mode():
        for batch in torch.randn(FEW, 3, SIZE, SIZE).split(BATCH):
            net(batch)
    return time.process_time() - began, list(net.parameters())[-2].shape[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--heads", type=int, nargs="+", default=[1000, 10000], help="training images of sweeps of heads")
    parser.add_argument("--backbones", nargs="*", default=["resnet18", "resnet50"], help="of torchvision")
    asked = parser.parse_args()
    for counts in (asked.images, asked.runs):
        if any(more <= fewer for fewer, more in pairwise(counts)):
            parser.error("counts have to rise")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    rows = [measured(f"dataset.kwargs.size={count + 50}", "freeze=from_scratch") for count in asked.images]
    table("images", "image and epoch", asked.images, rows, EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        frozen = ("-m", "freeze=classifier_only", f"model.weights={start(Path(folder))}")
        runs = [measured(*frozen, f"seed=range({count})") for count in asked.runs]
        table("runs", "run", asked.runs, runs, 1)
        print(f"\n{'images':>10} {'further run':>12} {'head alone':>12}   CPU s, {HEAD_EPOCHS} epochs")
        for images in asked.heads:
            print(f"{images:10} {further(images, *frozen):12.3f} {alone(images):12.3f}", flush=True)
    print(f"\n{'backbone':>10} {'one pass':>12} {'further run':>12} {'head alone':>12}   CPU s, {FEW} images of {SIZE} px")
    for backbone in asked.backbones:
        words = (f"model={backbone}", f"dataset.kwargs.image_size={SIZE}")
        with tempfile.TemporaryDirectory() as folder:
            weights = f"model.weights={start(Path(folder), *words)}"
            run = further(FEW, "-m", "freeze=classifier_only", weights, *words)
        seconds, width = once(backbone)
        print(f"{backbone:>10} {seconds:12.3f} {run:12.3f} {alone(FEW, width):12.3f}", flush=True)


def start(folder: Path, *words: str) -> Path:
    """Weights of the backbone: what is frozen may not be random."""
    words = (*words, "freeze=from_scratch", "trainer.epochs=1", f"paths.outputs={folder}", f"paths.cache={folder}/cache")
    subprocess.run([sys.executable, "-m", "fourfold", *COMMON, *words], stdout=subprocess.DEVNULL, check=True)
    return next(folder.rglob("best.pt"))


if __name__ == "__main__":
    main()
