"""What test_torchrun.py runs under torchrun: some runs one after the other, each in a folder of its own."""

import os
import sys
from pathlib import Path
from typing import Any

from fourfold.config import ConfigError
from fourfold.run import run
from test_run import config

WORDS: dict[str, list[str]] = {
    "plain": [],
    "l2_sp": ["regularizer=l2_sp", "regularizer.weight=1.0", "regularizer.head_weight=0.1"],
    "bss": ["regularizer=bss", "regularizer.weight=0.1", "regularizer.smallest=3"],
    "feature_distillation": ["regularizer=feature_distillation", "regularizer.weight=0.1"],
    "delta": ["regularizer=delta", "regularizer.weight=0.1", "regularizer.attention_images=8"],
    "co_tuning": ["regularizer=co_tuning"],
    "adabn": ["adapt=adabn"],
    "coral": ["adapt=coral", "adapt.weight=1e4"],
    "mmd": ["adapt=mmd"],
    "dann": ["adapt=dann"],
    "with_adaptation": ["regularizer=bss", "adapt=mmd"],
}
REFUSED: dict[str, list[str]] = {
    "odd": ["regularizer=bss", "trainer.batch_size=9"],
    "accumulate": ["adapt=coral", "trainer.accumulate=2"],
}


def configured(name: str) -> Any:
    """A run whose statistics are frozen, since each process would have its own, on shares that are not equal at the end."""
    words = ["optimizer=sgd", "freeze_strategy.norm_stats=frozen", "dataset.train_size=43", "trainer.eval_batch_size=8"]
    return config(*words, *{**WORDS, **REFUSED}[name], epochs=1)


def main(folder: Path, ports: list[str]) -> None:
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # it serves one process group; each run makes its own
    for name, port in zip((*WORDS, *REFUSED), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        try:
            run(configured(name), folder / name)
        except ConfigError as error:
            (folder / f"{name}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
