"""What runs of one process share, and what a run among others may not notice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from fourfold.compose import compose
from fourfold.data.sources import open_source
from fourfold.files import read_json, read_jsonl
from fourfold.run import run

SMALL = [
    "dataset=digits", "dataset.shots=2", "dataset.val_size=20", "dataset.test_size=20", "model=micro_resnet",
    "transform=light", "trainer.epochs=2", "trainer.batch_size=10", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "logger=none",
]  # fmt: skip
ALONE = """
import sys
from pathlib import Path
from fourfold.compose import compose
from fourfold.run import run
run(compose(sys.argv[2:]), Path(sys.argv[1]))
"""


def found(folder: Path) -> tuple[list[dict[str, float]], Any, dict[str, torch.Tensor]]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "metrics.jsonl")]
    result = read_json(folder / "result.json")
    return rows, (result["metrics"], result["confusion"]), torch.load(folder / "best.pt", weights_only=True)["model"]


def test_a_run_after_others_is_bit_for_bit_the_run_alone_in_a_fresh_process(tmp_path: Path) -> None:
    run(compose([*SMALL, "freeze=from_scratch", "seed=3"]), tmp_path / "weights")
    weights = f"model.weights={tmp_path / 'weights/best.pt'}"
    mine = [*SMALL, weights, "freeze=full", "seed=1"]
    alone = [sys.executable, "-c", ALONE, str(tmp_path / "alone"), *mine]
    subprocess.run(alone, check=True, timeout=240)
    run(compose([*SMALL, weights, "freeze=classifier_only", "seed=0"]), tmp_path / "before")
    run(compose(mine), tmp_path / "after")
    rows, metrics, state = found(tmp_path / "after")
    expected_rows, expected_metrics, expected_state = found(tmp_path / "alone")
    assert rows == expected_rows
    assert metrics == expected_metrics
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


def test_the_images_of_a_dataset_are_made_once(tmp_path: Path) -> None:
    first, second = (compose([*SMALL, f"seed={seed}"]).dataset for seed in (0, 1))
    assert open_source(first, 0).train.images is open_source(second, 1).train.images
