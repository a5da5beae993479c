"""From a dataset's configuration to its official splits."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fourfold.config import ConfigError, DatasetConfig, nearest
from fourfold.data import catalog, folders, generated, hub, own, tables
from fourfold.data.fake import fake
from fourfold.data.pools import Pool, Source


def open_source(config: DatasetConfig, seed: int) -> Source:
    """Find, download or make the dataset; no image of a file is decoded. The last two are kept, so that the runs of a sweep
    in one process share them.

    Args:
        seed: For a function of the user's that takes one.

    Raises:
        ConfigError: if it is not there, or is not what the config says.
    """
    key = {name: getattr(config, name) for name in ("name", "source", "_target_", "kwargs", "root", "download", "task")}
    return _open(json.dumps(key, sort_keys=True), seed if config.source == "target" else 0)


@functools.lru_cache(maxsize=2)
def _open(key: str, seed: int) -> Source:
    given = json.loads(key)
    source = _made(given, seed)
    _check(source, given["name"], given["task"])
    return source


def _made(given: dict[str, Any], seed: int) -> Source:
    kind, name, kwargs, task = given["source"], given["name"], given["kwargs"], given["task"]
    root = Path(given["root"]).expanduser()
    if kind == "target":
        return own.from_target(given["_target_"], kwargs, task, seed)
    if kind == "csv":
        return _call(tables.table, kwargs, root, task)
    if kind == "fake":
        return _call(fake, kwargs, task=task)
    if task != "classification":
        raise ConfigError(
            f"dataset.task={task}, but dataset={name} has classes: use dataset.task=classification, or dataset=csv for labels "
            "of your own"
        )
    if kind == "image_folder":
        return _call(folders.image_folder, kwargs, root)
    if kind == "huggingface":
        return _call(hub.huggingface, kwargs, root)
    if kind == "generated":
        return _generated(generated.load(name, kwargs))
    return catalog.open_torchvision(name, kwargs, root, download=given["download"])


def _generated(made: dict[str, Any]) -> Source:
    pools = {split: Pool(*made[split]) for split in ("train", "val", "test") if made.get(split) is not None}
    return Source(pools["train"], pools.get("val"), pools.get("test"), made["classes"])


def _call(function: Callable[..., Source], kwargs: dict[str, Any], *fixed: Any, **more: Any) -> Source:
    """Call with the user's kwargs, which the function takes by keyword only."""
    takes = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in more
    ]
    for name in kwargs:
        if name not in takes:
            raise ConfigError(
                f"dataset.kwargs.{name} is not taken by this dataset{nearest(name, takes)}: "
                f"choose from {', '.join(takes) or 'none'}"
            )
    for name in takes:
        if name not in kwargs:
            raise ConfigError(f"dataset.kwargs.{name} is missing: this dataset needs {', '.join(takes)}")
    return function(*fixed, **more, **kwargs)


def _check(source: Source, name: str, task: str) -> None:
    labels = [pool.labels for pool in (source.train, source.val, source.test) if pool is not None]
    if len(labels[0]) == 0:
        raise ConfigError(f"dataset={name} holds no training image: give one that does")
    if task == "multilabel" and any(part.shape[1:] != (len(source.classes),) for part in labels):
        raise ConfigError(f"dataset={name} has multi-hot labels of another width than its {len(source.classes)} classes")
    if task == "classification":
        numbers = torch.cat(labels)
        if numbers.min() < 0 or numbers.max() >= len(source.classes):
            raise ConfigError(
                f"dataset={name} has class numbers from {int(numbers.min())} to {int(numbers.max())}, but "
                f"{len(source.classes)} classes: number them from 0"
            )
    if task == "regression" and not all(part.isfinite().all() for part in labels):
        raise ConfigError(f"dataset={name} has labels that are no finite numbers: leave these images out, or correct them")
    if task != "regression" and len(source.classes) < 2:
        word = "class" if task == "classification" else "label"
        named = f"one {word}, {source.classes[0]}" if source.classes else f"no {word}"
        raise ConfigError(f"dataset={name} has {named}: two or more are needed")
