"""Fourfold beside bare loops, Lightning, Hugging Face Trainer, fastai and Keras on torch, on the same images and networks.

Each peer is installed into an environment of its own, on top of the one that runs this script, so that all compute with one
torch. Each is used as its own documentation uses it; the few lines are in scripts/bench/peers/, and so is the task. Every fit
is a process of its own, on one thread, without loading workers, all by turns; ratios are of the same round. "fit" is CPU
seconds from the built network to the end of training, Fourfold's with its whole run (decoding, checkpoints, test); "process"
is CPU seconds of the process and its children, imports included.

    full             fine-tune the whole of a resnet18 at 128 px from random weights, shifts and flips
    classifier_only  its head only, 10 epochs, no augmentation
    last_blocks      the head and the last block of a resnet50 at 224 px, 10 epochs, no augmentation
    sweep            eight learning rates of classifier_only, one epoch each, in one process

    python scripts/bench/peers.py [full classifier_only last_blocks sweep] [--images 300] [--rounds 2] [--systems ours bare ...]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from photographs import photographs

HERE = Path(__file__).parent / "peers"
SYSTEMS = {  # script in peers/: what is installed for it
    "bare": (),
    "bare_tensors": (),
    "ours": (),
    "ours_auto": (),
    "lightning_hydra": ("lightning", "rich"),
    "huggingface": ("transformers", "accelerate"),
    "fastai_": ("fastai",),
    "keras_": ("keras",),
}


@dataclass(frozen=True)
class Kind:
    model: str
    strategy: str
    learns: tuple[str, ...]
    size: int
    augment: bool
    epochs: int
    lrs: tuple[float, ...] = (0.01,)


KINDS = {
    "full": Kind("resnet18", "from_scratch", (), 128, True, 3),
    "classifier_only": Kind("resnet18", "classifier_only", ("fc",), 128, False, 10),
    "last_blocks": Kind("resnet50", "last_blocks", ("layer4.2", "fc"), 224, False, 10),
    "sweep": Kind("resnet18", "classifier_only", ("fc",), 128, False, 1, (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1)),
}


def interpreter(system: str, environments: Path) -> Path | None:
    """The Python that has the system; installs it at the first time. None where that fails, with a line that says why."""
    wanted = SYSTEMS[system]
    if not wanted:
        return Path(sys.executable)
    folder = environments / system
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    below = sysconfig.get_path("purelib")
    Path(purelib, "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    torch_as_here = f"torch=={torch.__version__.partition('+')[0]}"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, torch_as_here]
    told = subprocess.run(install, capture_output=True, text=True)
    if told.returncode:
        print(f"{system} is left out, since it does not install: {told.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    done.touch()
    return python


def version(system: str, python: Path) -> str:
    names = SYSTEMS[system][:1]
    ask = "import sys; from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in sys.argv[1:]))"
    return subprocess.run([python, "-c", ask, *names], check=True, capture_output=True, text=True).stdout.strip()


def measured(system: str, python: Path, task: dict[str, Any]) -> dict[str, Any]:
    """What one process printed, with its own CPU seconds and those of its children."""
    with tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [python, HERE / f"{system}.py", json.dumps({**task, "out": out})]
        stdout, stderr = Path(out, "stdout"), Path(out, "stderr")
        with stdout.open("w") as printed, stderr.open("w") as complained:
            process = subprocess.Popen(command, stdout=printed, stderr=complained, env=environment, cwd=out)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{system} failed: {stderr.read_text()[-2000:]}")
        told = json.loads(stdout.read_text().strip().splitlines()[-1])
    return {**told, "process": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss / 1024}


def weights(model: str, path: Path) -> Path:
    if not path.exists():
        torch.manual_seed(0)
        torch.save(getattr(torchvision.models, model)().state_dict(), path)
    return path


def split(folder: Path, images: int) -> Path:
    """train/, val/ and test/: `images` to train on, a tenth to validate, one of each class to test."""
    for part, (count, seed) in {"train": (images, 0), "val": (images // 10, 1), "test": (10, 2)}.items():
        photographs(folder / part, count, seed)
    return folder


def compare(name: str, images: int, rounds: int, pythons: dict[str, Path]) -> None:
    kind = KINDS[name]
    found: dict[str, list[dict[str, Any]]] = {system: [] for system in pythons}
    with tempfile.TemporaryDirectory() as temporary:
        root = split(Path(temporary, "images"), images)
        start = None if kind.strategy == "from_scratch" else str(weights(kind.model, Path(temporary, "start.pt")))
        task = {
            "root": str(root), "model": kind.model, "weights": start, "strategy": kind.strategy, "learns": list(kind.learns),
            "size": kind.size, "augment": kind.augment, "epochs": kind.epochs, "lrs": list(kind.lrs),
        }  # fmt: skip
        for turn in range(rounds):
            for system, python in pythons.items():
                found[system].append(measured(system, python, task))
                print(f"  {name} {turn + 1} {system}: {found[system][-1]}", file=sys.stderr, flush=True)
    print(f"\n{name}: {kind.model} at {kind.size} px, {images} images, {kind.epochs} epochs, {len(kind.lrs)} fits, n={rounds}")
    print(f"{'':16} {'fit, CPU s':>15} {'over bare':>14} {'process, CPU s':>15} {'over bare':>14} {'MB':>6}  best val/acc")
    for system, rows in found.items():
        columns = []
        for key in ("fit", "process"):
            values = [row[key] for row in rows]
            ratios = [row[key] / other[key] for row, other in zip(rows, found.get("bare", rows), strict=True)]
            columns += [f"{stated(values, 1):>15}", f"{stated(ratios, 2):>14}"]
        accuracy = statistics.mean(max(row["accuracies"]) for row in rows)
        megabytes = max(row["megabytes"] for row in rows)
        print(f"{system:16} {' '.join(columns)} {megabytes:6.0f}  {accuracy:.2f}", flush=True)


def stated(values: list[float], digits: int) -> str:
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--images", type=int, default=300, help="to train on")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--environments", type=Path, default=Path(sys.prefix, "peers"))
    asked = parser.parse_args()
    pythons = {system: python for system in asked.systems if (python := interpreter(system, asked.environments))}
    versions = [version(system, python) for system, python in pythons.items() if SYSTEMS[system]]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {', '.join(versions)}"
    )
    for name in asked.tasks or KINDS:
        compare(name, asked.images, asked.rounds, pythons)


if __name__ == "__main__":
    main()
