"""Study folders as runs leave them, without running anything: small made-up ones, and one with plausible figures."""

import json
import random
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

TRAINABLE = {"classifier_only": 650, "last_blocks": 56_010, "lp_ft": 80_986, "full": 80_986, "from_scratch": 80_986}


def write_run(
    study: Path,
    *,
    strategy: str = "full",
    lr: float = 1e-3,
    seed: int = 0,
    val: float = 0.9,
    test: float = 0.9,
    quadrant: tuple[str, str, str | None] | None = None,  # similarity, size, textbook
    dataset: str = "digits",
    shots: int | None = 5,
    model: str = "micro_resnet",
    metric: str = "acc",
    task: str = "classification",
    seconds: float = 1.5,
    extra: dict[str, Any] | None = None,  # more of the config, by section
    **result: Any,
) -> Path:
    """Write one finished run's `result.json` and return its folder. `result` overrides top-level keys."""
    similarity, size, textbook = quadrant or (None, None, None)
    name = f"{similarity}_{size}" if quadrant else None
    config: dict[str, Any] = {
        "seed": seed,
        "study": study.name,
        "dataset": {"name": dataset, "task": task, "shots": shots, "train_size": None, "fraction": None, "root": "data"},
        "model": {"name": model, "source": "micro_resnet", "weights": "default"},
        "freeze_strategy": {"name": strategy, "pretrained": strategy != "from_scratch", "blocks": None},
        "optimizer": {"name": "adamw", "lr": lr, "weight_decay": 0.01, "kwargs": {"fused": True}},
        "trainer": {"epochs": 10, "monitor": "auto"},
        "quadrant": {"name": name, "similarity": similarity, "size": size, "textbook": textbook},
    }
    for section, values in (extra or {}).items():
        config[section] = {**config.get(section, {}), **values}
    parts = [f"dataset={dataset}", f"dataset.shots={shots}", f"freeze={strategy}", f"optimizer.lr={lr:g}", f"seed={seed}"]
    run_id = f"{zlib.crc32(json.dumps([config], sort_keys=True).encode()):08x}"
    folder = study / f"{dataset}-{model}-{strategy}-s{seed}-{run_id}"
    trainable = TRAINABLE.get(strategy, 80_986)
    frozen = trainable < 80_986
    content = {
        "run_id": run_id,
        "status": "finished",
        "study": study.name,
        "overrides": [f"quadrant={name}", *parts[2:]] if name else parts,
        "config": config,
        "metrics": {"train": {"loss": 0.2}, "val": {"loss": 0.3, metric: val}, "test": {"loss": 0.3, metric: test}},
        "best_epoch": 8,
        "epochs": 10,
        "seconds": seconds,
        "seconds_per_epoch": seconds / 10,
        "params": {"total": 80_986, "trainable": trainable},
        "peak_memory_bytes": 400_000_000,
        "manifest_hash": f"{zlib.crc32(f'{dataset}{shots}{seed}'.encode()):08x}" * 8,
        "images": {"train": 10 * (shots or 20), "val": 250, "test": 600},
        "test_opened": 1,
        "confusion": [[40, 10], [10, 40]] if task == "classification" else None,
        "classes": ["a", "b"],
        "versions": {"python": "3.11.2", "torch": "2.9.1", "fourfold": "0.1.0"},
        "git_revision": "0123456789abcdef",
        "device": "cpu",
        "proof": [{"phase": 0, "epochs": [0, 9], "tensors": 40, "before": "ab12", "after": "ab12"}] if frozen else [],
        "weights": {"source": "default", "missing": [], "unexpected": [], "mismatched": []},
        **result,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def write_history(folder: Path) -> None:
    """What a run leaves beside its result: epochs, and pictures of its mistakes."""
    rows = [
        {"epoch": e, "train/loss": 2.0 / (e + 1), "lr": 0.001} | ({"val/acc": 0.5 + e / 50} if e % 2 else {}) for e in range(10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (128, 64), (200, 120, 40)).save(folder / "mistakes.jpg")
    told = [{"image": i, "target": "3", "predicted": "<8>", "confidence": 0.9 - i / 10} for i in range(2)]
    (folder / "mistakes.json").write_text(json.dumps(told))


def write_unfinished(study: Path, name: str = "digits-micro_resnet-full-s9-dead", *, epochs_done: int = 3) -> Path:
    """A run that was killed: its config and some epochs, no result."""
    folder = study / name
    folder.mkdir(parents=True)
    config = {
        "seed": 9,
        "dataset": {"name": "digits", "shots": 5},
        "freeze_strategy": {"name": "full"},
        "optimizer": {"lr": 0.01},
        "trainer": {"epochs": 10},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": e}) + "\n" for e in range(epochs_done)) + '{"epo')
    return folder


# (dataset, shots, textbook, classes), then per strategy: test accuracy in % at 1e-3, 3e-3, 1e-2; spread over seeds; seconds
PLAUSIBLE = {
    ("similar", "small"): (("glyph_digits", 5, "classifier_only"), {
        "classifier_only": (90.1, 92.4, 93.2, 1.5, 0.7), "last_blocks": (91.7, 90.9, 86.0, 1.6, 1.1),
        "full": (87.8, 86.6, 71.7, 2.0, 1.7), "from_scratch": (12.1, 13.0, 14.0, 0.5, 1.7)}),
    ("similar", "large"): (("glyph_digits", 100, "last_blocks"), {
        "classifier_only": (96.3, 97.0, 97.2, 0.2, 1.5), "last_blocks": (97.5, 97.4, 97.1, 0.2, 2.1),
        "full": (98.1, 98.0, 96.9, 0.2, 3.6), "from_scratch": (85.2, 91.1, 93.7, 0.3, 3.6)}),
    ("middle", "small"): (("digits", 5, "classifier_only"), {
        "classifier_only": (86.0, 88.1, 88.7, 0.6, 0.7), "last_blocks": (92.5, 93.9, 92.2, 1.2, 1.1),
        "full": (93.8, 94.0, 93.8, 0.9, 1.7), "from_scratch": (60.3, 74.0, 78.6, 1.9, 1.7)}),
    ("middle", "large"): (("digits", 100, "last_blocks"), {
        "classifier_only": (95.0, 96.3, 96.9, 0.2, 1.5), "last_blocks": (99.4, 99.5, 99.2, 0.1, 2.1),
        "full": (99.6, 99.7, 99.4, 0.1, 3.6), "from_scratch": (98.2, 99.0, 99.3, 0.2, 3.6)}),
    ("different", "small"): (("textures", 5, "from_scratch"), {
        "classifier_only": (14.1, 15.0, 15.7, 1.5, 0.7), "last_blocks": (16.0, 17.4, 18.2, 2.5, 1.1),
        "full": (19.0, 21.1, 23.4, 2.0, 1.7), "from_scratch": (14.2, 16.0, 17.9, 1.1, 1.7)}),
    ("different", "large"): (("textures", 100, "full"), {
        "classifier_only": (22.0, 24.9, 26.2, 0.2, 1.5), "last_blocks": (30.1, 35.5, 39.0, 1.3, 2.1),
        "full": (54.2, 70.7, 78.5, 1.3, 3.6), "from_scratch": (32.7, 47.8, 65.0, 2.4, 3.6)}),
}  # fmt: skip


def write_plausible(
    study: Path, seeds: int = 3, rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2), places: int = len(PLAUSIBLE)
) -> Path:
    """A four-quadrant study with a middle domain, or its first places: every figure drawn at random around plausible means."""
    draw = random.Random(0)
    for (similarity, size), ((dataset, shots, textbook), strategies) in [*PLAUSIBLE.items()][:places]:
        luck = [draw.gauss(0, 0.6) for _ in range(seeds)]  # what a seed's images do to every strategy
        for strategy, (*means, spread, seconds) in strategies.items():
            for lr, mean in zip((1e-3, 3e-3, 1e-2), means, strict=True):
                if lr not in rates:
                    continue
                for seed in range(seeds):
                    test = min(0.998, max(0.08, (mean + spread * (luck[seed] + draw.gauss(0, 0.7))) / 100))
                    val = min(1.0, max(0.08, test + draw.gauss(0, 0.01)))
                    run = write_run(
                        study, strategy=strategy, lr=lr, seed=seed, val=round(val * 250) / 250, test=round(test * 600) / 600,
                        quadrant=(similarity, size, textbook), dataset=dataset, shots=shots,
                        seconds=seconds * draw.uniform(0.9, 1.2),
                        confusion=[[60 * (i == j) for j in range(10)] for i in range(10)], classes=[str(i) for i in range(10)],
                        drift=[{"block": f"stages.{i}", "weights": moved * (i + 1) / 4, "cka": 1 - moved * (i + 1) / 10}
                               for i, moved in enumerate([0.0 if strategy == "classifier_only" else 0.2] * 4)]
                              + [{"block": "head", "weights": 1.5, "cka": None}],
                    )  # fmt: skip
                    write_history(run)
    return study
