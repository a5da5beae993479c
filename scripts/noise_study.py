"""Real studies of pure noise: images whose labels were shuffled, so that no strategy can be better than another.

Every repetition has its own labels and trains every strategy with several seeds, in the embedded study's backbone and with the
steps of its small quadrants; a report that names a winner in one is wrong. Some ten minutes on two cores.

    python scripts/noise_study.py [FOLDER] [OVERRIDES]     such as /tmp/noise +dataset.kwargs.noise=0,1 seed=0,1,2,3,4

Prints one line for each repetition, and fails if more than one in twenty has a winner.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from fourfold.data import generated
from fourfold.report.wording import headline, spread
from fourfold.study.quadrants import read_study

REPETITIONS = 20
STUDY = [
    "model=micro_resnet", "dataset=custom", "dataset._target_=noise_study.textures", "dataset.shots=5", "dataset.val_size=250",
    "dataset.loader.drop_last=true", f"+dataset.kwargs.noise={','.join(map(str, range(REPETITIONS)))}",
    "freeze=classifier_only,last_blocks,full,from_scratch", "optimizer.lr=1e-3,1e-2", "seed=0,1,2", "scheduler.warmup_epochs=3",
    "trainer.epochs=33", "trainer.batch_size=16", "trainer.val_every=33", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "trainer.checkpoint_seconds=60", "logger=none", "search.preflight=off", "search.map=false",
    "study=noise",
]  # fmt: skip


class Shuffled(TensorDataset):
    """Images with labels that have nothing to do with them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
        super().__init__(images, labels[torch.randperm(len(labels), generator=generator)])
        self.targets = self.tensors[1]


def textures(noise: int) -> dict[str, Any]:
    """The embedded study's textures with the labels of training and test images shuffled, each `noise` otherwise."""
    made = generated.load("textures", {"seed": 0, "train": 250, "test": 60})
    generator = torch.Generator().manual_seed(noise)
    splits = {split: Shuffled(*made[split], generator) for split in ("train", "test")}
    return {**splits, "classes": made["classes"]}


def main(words: Sequence[str]) -> int:
    folder = Path(words[0]) if words and "=" not in words[0] else Path(tempfile.mkdtemp(prefix="noise-"))
    overrides = [word for word in words if "=" in word]
    replaced = {word.partition("=")[0] for word in overrides}
    kept = [word for word in STUDY if word.partition("=")[0] not in replaced]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fourfold", "-m", *kept, *overrides, f"paths.outputs={folder.absolute()}"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": here}, stdout=subprocess.DEVNULL, check=True)
    places = read_study(folder / "noise").places
    for place in places:
        scores = ", ".join(f"{cell.strategy} {spread(cell.chosen.test, place.metric)}" for cell in place.cells)
        print(f"{' '.join(place.variant) or 'noise'}: {headline(place)} ({scores})")
    claims = sum(place.verdict.winner is not None for place in places)
    print(f"{claims} of {len(places)} studies of noise name a winner; in {folder / 'noise'}")
    return int(claims > len(places) / 20)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
