"""Fourfold on a GPU, in bf16 and channels_last, against bare loops and the device.

Full fine-tuning, images per second:

    compute       forward, backward and step on one batch that lies on the device: what this model can reach there
    bare          a minimal loop over images that lie on the device as bytes, shuffled, normalised there
    Fourfold      its training, on JPEGs that were decoded before, in the memory of the host; later epochs, without validation
    compiled      the same with trainer.compile=true, where asked for

What is frozen, seconds of --fits epochs from the built parts to the last validation:

    bare          the minimal loop again, through the frozen part without gradients, its batch norm in eval mode
    Fourfold      its fit, with the pass that stores activations
    further       the same of a run behind another with the same frozen part in its process, as in a sweep
    uncached      Fourfold with cache.activations=off

Wall seconds, by turns in one process. The share of the device's peak counts the operations of the model's own convolutions and
products (torch.utils.flop_counter). Without a GPU it says so and ends well; --device cpu tries the script itself.

    python scripts/bench/gpu.py [full classifier_only last_blocks] [--model resnet50] [--size 224] [--batch 256] [--images 4096]
                                [--epochs 4] [--fits 10] [--rounds 2] [--compile]
"""

import argparse
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from photographs import photographs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fourfold.run as room
from fourfold.compose import compose
from fourfold.stock import Stock
from fourfold.task import execute

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 operations per second, from NVIDIA's data sheets (SXM)
MEAN, STD, CLASSES = 127.5, 64.0, 10
VAL = 64  # images to validate, and as many to test
LAST = {"resnet18": "layer4.1", "resnet50": "layer4.2"}  # the last block of a model


def waited(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def network(model: str, device: str, freeze: str = "full") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = getattr(torchvision.models, model)(num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    if freeze != "full":
        learns = (LAST[model], "fc") if freeze == "last_blocks" else ("fc",)
        for name, module in net.named_modules():
            if name and not any(name == each or name.startswith(f"{each}.") or each.startswith(f"{name}.") for each in learns):
                module.eval().requires_grad_(requires_grad=False)
    moving = [each for each in net.parameters() if each.requires_grad]
    return net, torch.optim.SGD(moving, lr=0.01, momentum=0.9, nesterov=True, fused=True)


def prepared(pixels: Tensor) -> Tensor:
    return ((pixels.float() - MEAN) / STD).to(memory_format=torch.channels_last)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, pixels: Tensor, labels: Tensor, device: str) -> None:
    with torch.autocast(device, torch.bfloat16):
        outputs = net(prepared(pixels))
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


def bare_fit(asked: argparse.Namespace, freeze: str) -> float:
    """Seconds of all epochs, each with the answers to as many images to validate as Fourfold's."""
    net, optimizer = network(asked.model, asked.device, freeze)
    pixels = torch.randint(0, 256, (asked.images, 3, asked.size, asked.size), dtype=torch.uint8, device=asked.device)
    labels = torch.randint(0, CLASSES, (asked.images,), device=asked.device)
    step(net, optimizer, pixels[: asked.batch], labels[: asked.batch], asked.device)  # kernels are chosen before the clock runs
    started = waited(asked.device)
    for _ in range(asked.fits):
        net.train()
        for module in net.modules():
            if not any(each.requires_grad for each in module.parameters()):
                module.eval()
        for rows in torch.randperm(asked.images).split(asked.batch):
            there = rows.to(asked.device, non_blocking=True)
            step(net, optimizer, pixels[there], labels[there], asked.device)
        net.eval()
        with torch.no_grad(), torch.autocast(asked.device, torch.bfloat16):
            net(prepared(pixels[:VAL])).argmax(1).eq(labels[:VAL]).sum()
    return waited(asked.device) - started


def fourfold(asked: argparse.Namespace, *more: str, among: Stock | None = None) -> None:
    """A run of Fourfold in a folder of its own, on images that are decoded and, unless it is one among others, on a backbone
    whose activations are not stored."""
    if among is None:
        shutil.rmtree(asked.place / "cache/activations", ignore_errors=True)
    tested = VAL / (asked.images + 2 * VAL)
    words = (
        "dataset=image_folder", f"dataset.root={asked.place}/images", f"dataset.val_size={VAL}",
        f"dataset.test_fraction={tested}", f"model={asked.model}", f"model.image_size={asked.size}", "model.crop_pct=1.0",
        f"model.weights={asked.place}/start.pt", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=constant",
        f"trainer.batch_size={asked.batch}", f"trainer.device={asked.device}", "trainer.progress=false", "logger=none",
        "trainer.precision=bf16", "trainer.channels_last=true", "trainer.checkpoint_seconds=60",
        f"paths.cache={asked.place}/cache",
    )  # fmt: skip
    result = execute(compose([*words, *more]), Path(tempfile.mkdtemp(dir=asked.place)), shared=among)
    assert result["images"]["train"] == asked.images


def ours(asked: argparse.Namespace, *more: str) -> list[float]:
    """The same of Fourfold."""
    seconds: list[float] = []
    train = room._train

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = waited(asked.device)
        row = train(*args, **kwargs)
        seconds.append(waited(asked.device) - started)
        return row

    room._train = timed
    try:
        fourfold(asked, "freeze=from_scratch", f"trainer.epochs={asked.epochs}", *more)
    finally:
        room._train = train
    return [asked.images / each for each in seconds[1:]]


def our_fit(asked: argparse.Namespace, freeze: str, *more: str, among: Stock | None = None) -> float:
    """The same of Fourfold: from its parts to its test."""
    if among is not None:
        fourfold(asked, f"freeze={freeze}", "trainer.epochs=1", among=among)
    marks: list[float] = []
    begin, test = room._record_start, room._test

    def begun(*args: Any) -> None:
        begin(*args)
        marks.append(waited(asked.device))

    def tested(*args: Any) -> Any:
        marks.append(waited(asked.device))
        return test(*args)

    room._record_start, room._test = begun, tested  # type: ignore[assignment]
    try:
        fourfold(asked, f"freeze={freeze}", f"trainer.epochs={asked.fits}", *more, among=among)
    finally:
        room._record_start, room._test = begin, test
    return marks[1] - marks[0]


def operations(asked: argparse.Namespace) -> float:
    """Of one image in a training step."""
    net, optimizer = network(asked.model, asked.device)
    pixels = torch.zeros(2, 3, asked.size, asked.size, dtype=torch.uint8, device=asked.device)
    with FlopCounterMode(display=False) as counter:
        step(net, optimizer, pixels, torch.zeros(2, dtype=torch.long, device=asked.device), asked.device)
    return counter.get_total_flops() / 2


def told(name: str, values: list[float], unit: str, ratios: list[float], more: str = "") -> None:
    spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    ratio = statistics.mean(ratios)
    print(f"{name:10} {statistics.mean(values):9.4g}{spread} {unit} (n={len(values)}), {ratio:.2f} of bare{more}", flush=True)


def by_turns(systems: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(rounds):
        for system, once in systems.items():
            found[system].append(once())
    return found


def full(asked: argparse.Namespace, peak: float | None) -> None:
    systems: dict[str, Callable[[], float]] = {
        "compute": lambda: statistics.mean(bare(asked, one_batch=True)),
        "bare": lambda: statistics.mean(bare(asked, one_batch=False)),
        "Fourfold": lambda: statistics.mean(ours(asked)),
    }
    if asked.compile:
        systems["compiled"] = lambda: statistics.mean(ours(asked, "trainer.compile=true"))
    rates, per_image = by_turns(systems, asked.rounds), operations(asked)
    for system, values in rates.items():
        ratios = [one / other for one, other in zip(values, rates["bare"], strict=True)]
        share = "" if peak is None else f", {statistics.mean(values) * per_image / peak:.1%} of the device's peak"
        told(system, values, "images/s", ratios, share)


def frozen(asked: argparse.Namespace, freeze: str) -> None:
    systems: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_fit(asked, freeze),
        "Fourfold": lambda: our_fit(asked, freeze),
        "further": lambda: our_fit(asked, freeze, among=Stock()),
        "uncached": lambda: our_fit(asked, freeze, "cache.activations=off"),
    }
    seconds = by_turns(systems, asked.rounds)
    for system, values in seconds.items():
        told(system, values, "s", [one / other for one, other in zip(values, seconds["bare"], strict=True)])


def compared(asked: argparse.Namespace, peak: float | None) -> None:
    for part in asked.parts:
        print(f"\n{part}, {asked.images} images" + ("" if part == "full" else f", {asked.fits} epochs"), flush=True)
        full(asked, peak) if part == "full" else frozen(asked, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["full", "classifier_only", "last_blocks"])
    parser.add_argument("--model", default="resnet50", choices=sorted(LAST))
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096, help="a multiple of --batch")
    parser.add_argument("--epochs", type=int, default=4, help="of full fine-tuning, of which the first is not timed")
    parser.add_argument("--fits", type=int, default=10, help="epochs where something is frozen")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("skipped: this machine has no GPU")
        return
    logging.disable(logging.INFO)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "CPU"
    peak = next((value for card, value in PEAK.items() if card in name), None)
    print(f"{name}, torch {torch.__version__}, {asked.model} at {asked.size} px, batches of {asked.batch}")
    with tempfile.TemporaryDirectory() as folder:
        asked.place = Path(folder)
        photographs(asked.place / "images", asked.images + 2 * VAL)
        torch.save(getattr(torchvision.models, asked.model)().state_dict(), asked.place / "start.pt")
        fourfold(asked, "freeze=full", "trainer.epochs=1")  # decodes the images, and warms the device
        compared(asked, peak)


if __name__ == "__main__":
    main()
