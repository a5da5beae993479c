"""Images per second of full fine-tuning on a GPU, in bf16 and channels_last: Fourfold against a bare loop and the device.

    compute       forward, backward and step on one batch that lies on the device: what this model can reach there
    bare          a minimal loop over images that lie on the device as bytes, shuffled, normalised there
    Fourfold      its training, images in the memory of the host; later epochs, without validation
    compiled      the same with trainer.compile=true, where asked for

Wall seconds, by turns in one process. The share of the device's peak counts the operations of the model's own convolutions and
products (torch.utils.flop_counter). Without a GPU it says so and ends well; --device cpu tries the script itself.

    python scripts/bench/gpu.py [--model resnet50] [--size 224] [--batch 256] [--images 4096] [--epochs 4] [--compile]
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fourfold.run as room
from fourfold.compose import compose
from fourfold.task import execute

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 operations per second, from NVIDIA's data sheets (SXM)
MEAN, STD, CLASSES = 127.5, 64.0, 10


def waited(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def network(model: str, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = getattr(torchvision.models, model)(num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    return net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor, device: str) -> None:
    inputs = ((pixels.float() - MEAN) / STD).to(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        outputs = net(inputs)
    loss = nn.functional.cross_entropy(outputs.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def bare(asked: argparse.Namespace, *, one_batch: bool) -> list[float]:
    """Images per second of each epoch but the first."""
    net, optimizer = network(asked.model, asked.device)
    count = asked.batch if one_batch else asked.images
    pixels = torch.randint(0, 256, (count, 3, asked.size, asked.size), dtype=torch.uint8, device=asked.device)
    labels = torch.randint(0, CLASSES, (count,), device=asked.device)
    rates = []
    for _ in range(asked.epochs):
        started, seen = waited(asked.device), 0
        orders = [torch.arange(count)] * (asked.images // count) if one_batch else torch.randperm(count).split(asked.batch)
        for rows in orders:
            there = rows.to(asked.device, non_blocking=True)
            step(net, optimizer, pixels if one_batch else pixels[there], labels if one_batch else labels[there], asked.device)
            seen += len(rows)
        rates.append(seen / (waited(asked.device) - started))
    return rates[1:]


def ours(asked: argparse.Namespace, *more: str) -> tuple[list[float], dict[str, Any]]:
    """The same of Fourfold, and its result."""
    seconds: list[float] = []
    train = room._train

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = waited(asked.device)
        row = train(*args, **kwargs)
        seconds.append(waited(asked.device) - started)
        return row

    words = (
        "dataset=fake", f"dataset.kwargs.size={asked.images + 64}", f"dataset.kwargs.image_size={asked.size}",
        "dataset.val_size=64", f"model={asked.model}", f"model.image_size={asked.size}", "model.crop_pct=1.0",
        "freeze=from_scratch", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=constant", f"trainer.epochs={asked.epochs}",
        f"trainer.batch_size={asked.batch}", f"trainer.device={asked.device}", "trainer.progress=false", "logger=none",
        "trainer.precision=bf16", "trainer.channels_last=true",
    )  # fmt: skip
    room._train = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = execute(compose([*words, f"paths.cache={folder}/cache", *more]), Path(folder, "run"))
    finally:
        room._train = train
    return [result["images"]["train"] / each for each in seconds[1:]], result


def operations(asked: argparse.Namespace) -> float:
    """Of one image in a training step."""
    net, optimizer = network(asked.model, asked.device)
    pixels = torch.zeros(2, 3, asked.size, asked.size, dtype=torch.uint8, device=asked.device)
    with FlopCounterMode(display=False) as counter:
        step(net, optimizer, pixels, torch.zeros(2, dtype=torch.long, device=asked.device), asked.device)
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="of torchvision, and of conf/model")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096, help="a multiple of --batch")
    parser.add_argument("--epochs", type=int, default=4, help="of which the first is not timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("skipped: this machine has no GPU")
        return
    logging.disable(logging.INFO)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {asked.model} at {asked.size} px, batches of {asked.batch}")
    systems: dict[str, Callable[[], list[float]]] = {
        "compute": lambda: bare(asked, one_batch=True),
        "bare": lambda: bare(asked, one_batch=False),
        "Fourfold": lambda: ours(asked)[0],
    }
    if asked.compile:
        systems["compiled"] = lambda: ours(asked, "trainer.compile=true")[0]
    rates: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(asked.rounds):
        for system, rate in systems.items():
            rates[system].append(statistics.mean(rate()))
    per_image = operations(asked)
    peak = next((value for card, value in PEAK.items() if card in name), None)
    for system, values in rates.items():
        spread = f" +- {statistics.stdev(values):.0f}" if len(values) > 1 else ""
        over = statistics.mean(one / other for one, other in zip(values, rates["bare"], strict=True))
        share = "" if peak is None else f", {statistics.mean(values) * per_image / peak:.1%} of the device's peak"
        print(f"{system:10} {statistics.mean(values):8.0f}{spread} images/s (n={len(values)}), {over:.2f} of bare{share}")


if __name__ == "__main__":
    main()
