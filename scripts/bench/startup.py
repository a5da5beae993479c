"""What a run of a sweep costs before its first batch, in one process: the first one pays for imports, later ones should not.

Runs of the quick embedded study, one after the other, each as `fourfold.run.run` begins it, CPU seconds and wall seconds from
the call to the moment the first batch is asked for; then what the parts of the last start cost.

    python scripts/bench/startup.py [--runs 5] [--logger none|csv|wandb] [--profile]
"""

import argparse
import contextlib
import cProfile
import io
import logging
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from fourfold.compose import compose
from fourfold.task import execute

COMMON = ("experiment=quadrants_quick", "quadrant=similar_small", "trainer.epochs=2")


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def begun(config: Any, folder: Path, profile: cProfile.Profile | None) -> tuple[float, float]:
    """CPU and wall seconds from the call of `run` to its first batch; the run then goes on to its end."""
    import fourfold.run as room

    marks = []
    train = room.train_one_epoch

    def noting(*args: Any, **kwargs: Any) -> Any:
        if not marks:
            if profile is not None:
                profile.disable()
            marks.append(clocks())
        return train(*args, **kwargs)

    room.train_one_epoch = noting
    try:
        start = clocks()
        if profile is not None:
            profile.enable()
        execute(config, folder)
    finally:
        room.train_one_epoch = train
    return marks[0][0] - start[0], marks[0][1] - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--logger", default="none")
    parser.add_argument("--profile", action="store_true", help="of the last start, by function")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    profile = cProfile.Profile(time.process_time) if asked.profile else None
    with tempfile.TemporaryDirectory() as folder:
        paths = (f"paths.outputs={folder}", f"logger={asked.logger}")
        execute(compose(["experiment=pretrain_embedded_quick", "trainer.epochs=1", *paths]), Path(folder, "pretrained"))
        weights = f"model.weights={Path(folder, 'pretrained', 'best.pt')}"
        for i in range(asked.runs):
            freeze = ("full", "classifier_only")[i % 2]
            config = compose([*COMMON, *paths, weights, f"freeze={freeze}", f"seed={i}"])
            last = i == asked.runs - 1
            with contextlib.redirect_stdout(io.StringIO()):
                cpu, wall = begun(config, Path(folder, "study", str(i)), profile if last else None)
            print(f"run {i + 1}  {freeze:16} {cpu:6.3f} CPU s  {wall:6.3f} s", flush=True)
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumulative").print_stats("fourfold|torch.serialization|torchmetrics|copy|wandb", 40)


if __name__ == "__main__":
    main()
