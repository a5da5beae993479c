"""The record of a finished run, which every table, report and tracker is made from."""

from collections.abc import Sequence
from typing import Any

import torch

from fourfold import exact
from fourfold.assembly import Parts
from fourfold.config import RunConfig
from fourfold.drift import Change
from fourfold.entries import entries
from fourfold.memory import Portion, peak
from fourfold.provenance import git_revision, versions
from fourfold.records import asdict


def describe(
    parts: Parts,
    config: RunConfig,
    portion: Portion,
    run_id: str,
    overrides: tuple[str, ...],
    tested: dict[str, Any],
    changes: Sequence[Change],
) -> dict[str, Any]:
    """The content of `result.json`: accuracies from 0 to 1, seconds, bytes; `val` is of the best epoch.

    Args:
        parts: After the run, with the best weights restored.
        config: The run that was asked for.
        portion: What it held in memory at once, which may be less than asked for.
        run_id: Identity of the run.
        overrides: What the user typed.
        tested: Metrics of the one evaluation of the test split.
        changes: What training did to each block.
    """
    state, model = parts.state, parts.model
    test = {name: value for name, value in tested.items() if name != "confusion"}
    return {
        "run_id": run_id,
        "status": "finished",
        "study": config.study,
        "overrides": list(overrides),
        "config": asdict(config),
        "metrics": {"train": {"loss": state.train_loss}, "val": state.best, "test": test},
        "monitor": parts.monitor,
        "best_epoch": state.best_epoch,
        "l2": exact.penalty(parts, state.best_epoch),
        "epochs": state.epoch,
        "seconds": state.seconds,
        "seconds_per_epoch": state.seconds / state.epoch,
        "params": parameters(parts),
        "frontier": parts.stored.split.name if parts.stored is not None else None,
        "peak_memory_bytes": peak(parts.ranks.device),
        **asdict(portion),
        "precision": parts.config.trainer.precision,
        "channels_last": parts.config.trainer.channels_last,
        "compile_seconds": None if parts.compiled is None else parts.compiled.seconds,
        "manifest_hash": parts.splits.manifest.hash,
        "cut": [name for name in ("val", "test") if getattr(parts.splits.manifest, f"{name}_from") == "train"],
        "copies": _counts(parts.splits.manifest.copies),
        "images": {"train": parts.train.images, "val": parts.val.images, "test": len(parts.splits.test)}
        | ({"unlabelled": parts.unlabelled} if parts.unlabelled else {}),
        "test_opened": parts.splits.test.opened,
        "target": None if parts.splits.scale is None else asdict(parts.splits.scale),
        "confusion": tested.get("confusion"),
        "classes": list(parts.splits.classes),
        "task": parts.splits.task,
        "versions": versions(),
        "git_revision": git_revision(),
        "device": _device_name(parts.ranks.device),
        "world": parts.ranks.world,
        "proof": [asdict(proof) for proof in state.proofs],
        "weights": asdict(model.weights),
        "drift": [asdict(change) for change in changes],
    }


def _counts(copies: dict[str, dict[int, int]] | None) -> dict[str, int] | None:
    """How many images of `val` and `test` are copies of training images; None where nobody can tell."""
    return None if copies is None else {split: len(found) for split, found in copies.items()}


def parameters(parts: Parts) -> dict[str, int]:
    """How many numbers the network has (`total`), how many of them ever learn (`trainable`), and how many its `head` has."""
    sizes = {each.name: each.tensor.numel() for each in entries(parts.net) if not each.is_buffer}
    learned = parts.plan.learned
    return {
        "total": sum(sizes.values()),
        "trainable": sum(size for name, size in sizes.items() if name in learned),
        "head": sum(sizes.values()) - sum(sizes[name] for block in parts.model.blocks for name in block.params),
    }


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The few values of a result that a tracker shows beside a run."""
    values: dict[str, Any] = {f"test/{name}": value for name, value in result["metrics"]["test"].items()}
    values |= {f"best/val_{name}": value for name, value in result["metrics"]["val"].items()}
    values |= {f"params/{name}": value for name, value in result["params"].items()}
    return values | {"best/epoch": result["best_epoch"], "train/seconds": result["seconds"], "run_id": result["run_id"]}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
