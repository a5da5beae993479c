"""The user's own images: whatever a function of theirs gives."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.config import ConfigError
from fourfold.data import randomness
from fourfold.data.pools import FirstOf, Pool, Source
from fourfold.target import resolve

LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")  # where torchvision's datasets and their imitators keep them


def from_target(path: str, kwargs: dict[str, Any], task: str, seed: int) -> Source:
    """Call the user's function.

    It gets `kwargs`, and `seed` if it takes one; what it draws at random is a function of the seed either way. It returns one
    map-style dataset of (image, target) pairs, or a dict of them with the keys `train` and, where there are such, `val`, `test`
    and `classes` (names). Labels are read from an attribute `targets` or `labels` of a dataset where it has one, otherwise by
    going through all its items once.

    Raises:
        ConfigError: if what comes back is something else.
    """
    function = resolve(path)
    taken = inspect.signature(function)
    given = {**({"seed": seed} if "seed" in taken.parameters else {}), **kwargs}
    try:
        taken.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"dataset._target_={path} cannot be called ({error}): give what it takes as dataset.kwargs"
        ) from error
    with randomness.undisturbed():
        randomness.start(seed)
        made = function(**given)
    parts = dict(made) if isinstance(made, dict) else {"train": made}
    if "train" not in parts:
        raise ConfigError(
            f"dataset._target_={path} gave {sorted(parts)}: it must give train, and may give val, test and classes"
        )
    names = parts.pop("classes", None)
    for split, dataset in parts.items():
        if split not in ("train", "val", "test") or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            if split in ("val", "test") and dataset is None:
                continue
            raise ConfigError(
                f"dataset._target_={path} gave {split}={type(dataset).__name__}: give map-style datasets train, val and test "
                "(with __len__ and __getitem__), and classes"
            )
    if len(parts["train"]) == 0:
        raise ConfigError(f"dataset._target_={path} gave no training image: give some")
    pools = {
        split: Pool(FirstOf(dataset, name=f"{split} of {path}"), _own_labels(dataset, task, path))
        for split, dataset in parts.items()
        if dataset is not None
    }
    classes = tuple(map(str, names)) if names is not None else _numbered(pools["train"].labels, parts["train"], task)
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _numbered(labels: Tensor, dataset: Any, task: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    count = labels.shape[1] if task == "multilabel" else int(labels.max()) + 1
    names: Sequence[Any] = getattr(dataset, "classes", None) or range(count)
    return tuple(map(str, names))


def _own_labels(dataset: Any, task: str, path: str) -> Tensor:
    found = next((getattr(dataset, name) for name in LABEL_ATTRIBUTES if hasattr(dataset, name)), None)
    if found is None:
        found = [dataset[i][1] for i in range(len(dataset))]
    try:
        labels = torch.as_tensor(np.asarray(found).astype(np.int64 if task == "classification" else np.float32))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dataset._target_={path} has labels that are no numbers ({error}): give class numbers") from error
    if labels.ndim != (2 if task == "multilabel" else 1):
        raise ConfigError(
            f"dataset._target_={path} has labels of shape {list(labels.shape)}, but dataset.task={task} takes "
            f"{'[images, labels]' if task == 'multilabel' else 'one number per image'}"
        )
    return labels
