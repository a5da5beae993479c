"""What a sweep of heads on one frozen backbone costs: 1,000 JPEG files at 128 pixels, ResNet-18 with random weights, 10 epochs.

CPU seconds of whole processes, start-up included, in turns:

    limit      images decoded and run through the backbone once, then the heads of all runs trained as one stack: torch alone
    sweep      `fourfold -m` with as many runs (learning rates x 4 seeds, each seed with images of its own)
    half       the same with half of the runs: the difference is what further runs cost
    auto       the same, all runs, with trainer.precision=auto and trainer.channels_last=auto; all else is in fp32
    head       one head alone on features in memory, with torch's own layers and optimizer
    fit        one run of ours, from the first epoch's images to the last epoch
    bare       a plain loop over decoded images through the frozen backbone, without gradients for it

On a GPU (--device cuda) they are wall seconds.

    python scripts/bench/classifier_only.py [--rounds 3] [--runs 32] [--epochs 10] [--sweep-only] [--device cpu]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLASSES, PER_CLASS, SIZE = 10, 100, 128
SEEDS, BATCH = 4, 32
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")


def clock() -> float:
    """CPU seconds of this process, or wall seconds when what the GPU was given is done."""
    if DEVICE == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def images(folder: Path) -> None:
    """Low-frequency patterns with noise, 256 x 256, as JPEG files in a folder per class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        pattern = rng.uniform(0, 255, (8, 8, 3))
        for i in range(PER_CLASS):
            small = np.clip(pattern + rng.normal(0, 60, (8, 8, 3)), 0, 255).astype(np.uint8)
            large = np.asarray(Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC), dtype=float)
            noisy = np.clip(large + rng.normal(0, 8, large.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"class{label}" / f"{i}.jpg", quality=85)


def decoded(folder: Path):  # type: ignore[no-untyped-def]
    """Images [N, 3, 128, 128] and labels [N], by torchvision."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [
        v2.Resize(SIZE),
        v2.CenterCrop(SIZE),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
    ]
    read = ImageFolder(str(folder), v2.Compose(steps))
    pairs = [read[i] for i in range(len(read))]
    return torch.stack([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])


def backbone(weights: Path):  # type: ignore[no-untyped-def]
    import torch
    from torchvision.models import resnet18

    net = resnet18()
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.fc = torch.nn.Identity()  # type: ignore[assignment]
    return net.to(DEVICE).eval().requires_grad_(requires_grad=False)


def limit(folder: Path, weights: Path, runs: int, epochs: int) -> None:
    """One pass, and all heads as a stack, with a test at the end."""
    import torch
    from torch.nn.functional import cross_entropy

    pixels, labels = (each.to(DEVICE) for each in decoded(folder))
    net = backbone(weights)
    with torch.no_grad():
        features = torch.cat([net(some) for some in pixels.split(128)])
    orders = torch.stack([torch.randperm(len(labels), device=DEVICE) for _ in range(runs)])
    test, val, train = orders[:, :200], orders[:, 200:280], orders[:, 280:]
    weight = torch.nn.Parameter(torch.randn(runs, CLASSES, 512, device=DEVICE) / 23)
    bias = torch.nn.Parameter(torch.zeros(runs, 1, CLASSES, device=DEVICE))
    optimizer = torch.optim.SGD([weight, bias], lr=0.01, momentum=0.9)
    for _ in range(epochs):
        shuffled = train[:, torch.randperm(train.shape[1])]
        for chosen in shuffled.split(BATCH, dim=1):
            logits = torch.baddbmm(bias, features[chosen], weight.mT)
            cross_entropy(logits.flatten(0, 1), labels[chosen].flatten()).mul(runs).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            torch.baddbmm(bias, features[val], weight.mT).argmax(2).eq(labels[val]).float().mean(1)
    with torch.no_grad():
        torch.baddbmm(bias, features[test], weight.mT).argmax(2).eq(labels[test]).float().mean(1)


def head(folder: Path, weights: Path, runs: int, epochs: int) -> None:
    """Prints CPU seconds of one head alone on features in memory."""
    import torch
    from torch.nn.functional import cross_entropy

    features, labels = torch.randn(720, 512, device=DEVICE), torch.randint(0, CLASSES, (720,), device=DEVICE)
    for _ in range(2):  # the first warms up
        began = clock()
        layer = torch.nn.Linear(512, CLASSES, device=DEVICE)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for chosen in torch.randperm(720).split(BATCH):
                cross_entropy(layer(features[chosen]), labels[chosen]).backward()
                optimizer.step()
                optimizer.zero_grad()
        took = clock() - began
    print(took)


def bare(folder: Path, weights: Path, runs: int, epochs: int) -> None:
    """Prints CPU seconds of the epochs: decoded images through the frozen backbone each time; two epochs stand for all."""
    import torch
    from torch.nn.functional import cross_entropy

    pixels, labels = (each.to(DEVICE) for each in decoded(folder))
    net, layer = backbone(weights), torch.nn.Linear(512, CLASSES, device=DEVICE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    began = clock()
    for _ in range(2):
        for chosen in torch.randperm(720).split(BATCH):
            cross_entropy(layer(net(pixels[chosen])), labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            layer(net(pixels[720:800]))
    print((clock() - began) * epochs / 2)


def fit(folder: Path, weights: Path, runs: int, epochs: int) -> None:
    """Prints CPU seconds of one run of ours, from its first epoch's images to the end of its last epoch."""
    from fourfold import run as story
    from fourfold.compose import compose

    marks: list[float] = []
    began, tested = story.seed_everything, story._test

    def start(*given: object) -> None:
        marks.append(clock())
        began(*given)  # type: ignore[arg-type]

    def end(*given: object):  # type: ignore[no-untyped-def]
        marks.append(clock())
        return tested(*given)  # type: ignore[arg-type]

    story.seed_everything, story._test = start, end  # type: ignore[assignment]
    out = folder.parent / f"fit{os.getpid()}"
    story.run(compose([*words(folder, weights, epochs, out), "optimizer.lr=0.01"]), out / "run")
    print(marks[-1] - marks[0])


def words(folder: Path, weights: Path, epochs: int, out: Path) -> list[str]:
    return [
        "dataset=image_folder", f"dataset.root={folder}", "model=resnet18", f"model.weights={weights}",
        f"model.image_size={SIZE}", "freeze=classifier_only", "optimizer=sgd", f"trainer.epochs={epochs}",
        f"trainer.batch_size={BATCH}", f"trainer.device={DEVICE}", "trainer.threads=1", "trainer.progress=false", "logger=none",
        "trainer.checkpoint_seconds=60", "trainer.precision=fp32", f"paths.outputs={out}", f"paths.cache={out}/cache",
    ]  # fmt: skip


def auto(folder: Path, weights: Path, runs: int, epochs: int) -> None:
    sweep(folder, weights, runs, epochs, "trainer.precision=auto", "trainer.channels_last=auto")


def sweep(folder: Path, weights: Path, runs: int, epochs: int, *more: str) -> None:
    from fourfold.cli import command

    rates = ",".join(f"{rate * 1e-3:.3g}" for rate in range(1, runs // SEEDS + 1))
    seeds = ",".join(map(str, range(SEEDS)))
    out = folder.parent / f"sweep{os.getpid()}"
    asked = [word for word in words(folder, weights, epochs, out) if not more or not word.startswith("trainer.precision=")]
    code = command(["-m", *asked, *more, "study=s", f"optimizer.lr={rates}", f"seed={seeds}"])
    assert code == 0
    assert len(list(out.glob("s/*/result.json"))) == runs


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(part: str, folder: Path, weights: Path, runs: int, epochs: int) -> float:
    """CPU seconds of a process (wall seconds with a GPU), or what it says itself."""
    used = children if DEVICE == "cpu" else time.perf_counter
    before = used()
    command = [sys.executable, __file__, "--part", part, str(folder), str(weights), str(runs), str(epochs)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return float(told.split()[-1]) if part in ("head", "bare", "fit") else used() - before


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        import torch

        torch.set_num_threads(1)
        parts = {"limit": limit, "sweep": sweep, "half": sweep, "auto": auto, "head": head, "bare": bare, "fit": fit}
        return parts[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=32, help="of the sweep, a multiple of 8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sweep-only", action="store_true", help="leave out the single run and the bare loop")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    asked = parser.parse_args()
    if asked.device != DEVICE:
        os.environ["BENCH_DEVICE"] = asked.device
        os.execv(sys.executable, [sys.executable, *sys.argv])
    found: dict[str, list[float]] = {name: [] for name in ("limit", "sweep", "half", "auto", "head", "fit", "bare")}
    with tempfile.TemporaryDirectory() as place:
        folder, weights = Path(place) / "images", Path(place) / "resnet18.pt"
        images(folder)
        import torch
        from torchvision.models import resnet18

        torch.manual_seed(0)
        torch.save(resnet18().state_dict(), weights)
        for _ in range(asked.rounds):
            for name in found:
                if asked.sweep_only and name in ("fit", "bare"):
                    continue
                runs = asked.runs // 2 if name == "half" else asked.runs
                found[name].append(measured(name, folder, weights, runs, asked.epochs))
                print(f"{name:6} {found[name][-1]:8.2f}", flush=True)
    print(
        f"\n{'CPU' if DEVICE == 'cpu' else 'wall'} seconds, mean and spread of {asked.rounds}; "
        f"{asked.runs} runs of {asked.epochs} epochs; load {os.getloadavg()[0]:.1f}"
    )
    for name, values in found.items():
        if values:
            print(f"{name:6} {statistics.mean(values):8.2f} +- {statistics.pstdev(values):.2f}")
    mean = {name: statistics.mean(values) for name, values in found.items() if values}
    further = (mean["sweep"] - mean["half"]) / (asked.runs - asked.runs // 2)
    print(f"sweep over the limit                 {mean['sweep'] / mean['limit']:.2f}  (target 1.3)")
    print(f"sweep with precision=auto likewise    {mean['auto'] / mean['limit']:.2f}")
    print(f"each further run                     {further:.3f} s, a head alone {mean['head']:.3f} s")
    if "fit" in mean:
        print(f"fit over the bare loop               {mean['fit'] / mean['bare']:.2f}  (target 0.15)")
    return None


if __name__ == "__main__":
    main()
