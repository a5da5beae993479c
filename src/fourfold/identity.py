"""Which settings make two runs the same run.

A run is known by a hash of every setting that changes its result, so that the same run always finds its own folder, whoever
starts it, wherever its outputs lie and however it is recorded. `NOT_IN_THE_RESULT` lists what is left out, and why.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any, Union, get_args, get_origin, get_type_hints

from fourfold.config import RunConfig

NOT_IN_THE_RESULT = {
    "study": "a label",
    "logger": "who is told",
    "quadrant": "a label",
    "place": "how a quadrant is measured; what is chosen by it is hashed by itself",
    "reproduce": "what the result is held against",
    "search": "how the values were chosen, not which",
    "debug.name": "a label; what a debug option changes is hashed by itself",
    "paths": "where files lie",
    "dataset.root": "where files lie, unless the folder is the data set (see ROOT_IS_THE_DATA)",
    "dataset.download": "whether files may be fetched",
    "dataset.loader.num_workers": "pixels do not depend on who decodes them",
    "dataset.loader.pin_memory": "speed",
    "dataset.loader.persistent_workers": "speed",
    "model.trust": "a consent",
    "cache.activations": "speed; the numbers are those of the whole network",
    "cache.limit_gb": "room",
    "optimizer.small_lr": "a point of a search; a run has its rate in optimizer.lr",
    "trainer.eval_batch_size": "speed",
    "trainer.checkpoint_seconds": "how often, not what",
    "trainer.device": "the same run on another machine; devices differ by rounding",
    "trainer.threads": "speed; thread counts differ by rounding",
    "trainer.compile": "speed; compiled kernels differ by rounding",
    "trainer.profile": "a trace beside the run",
    "trainer.progress": "what the terminal shows",
}
NOT_IN_THE_PARTS = {
    "seed": "which images and weights, not how many",
    "study": "a label",
    "dataset.split_seed": "which images, not how many",
    "freeze_strategy.backbone_lr_mult": "a number of the optimizer",
    "freeze_strategy.layer_decay": "a number of the optimizer",
    "freeze_strategy.finetune_lr_mult": "a number of the optimizer",
    "optimizer.lr": "a number of the optimizer",
    "optimizer.weight_decay": "a number of the optimizer",
    "optimizer.momentum": "a number of the optimizer",
    "regularizer.weight": "a number of the loss",
    "regularizer.head_weight": "a number of the loss",
    "adapt.weight": "a number of the loss",
    "scheduler": "a factor on the learning rate",
    "trainer.patience": "when to stop",
    "trainer.checkpoint_seconds": "when to save",
    "trainer.loss.label_smoothing": "a number of the loss",
    "trainer.loss.gamma": "a number of the loss",
    "trainer.progress": "what the terminal shows",
    "trainer.profile": "a trace beside the run",
    "logger": "who is told",
    "quadrant": "a label",
    "place": "how a quadrant is measured",
    "reproduce": "what the result is held against",
    "search": "how the values were chosen, not which",
    "debug.name": "a label",
    "paths": "where files lie",
}  # two runs that differ in nothing else are built of the same parts, and take as long
ADDED = ("regularizer", "adapt")  # groups that add something to a strategy, and nothing where their option is `none`
CO_TUNING = ("relationship", "temperature")  # keys of the group that no other regularizer reads
EXACT = (("dtype", "fp32"), ("views", None))  # of the cache: activations as they were computed, of images as they are
ROOT_IS_THE_DATA = ("image_folder", "csv")  # dataset.source values for which dataset.root says which images
_LONGEST_PART = 60  # characters of a name in a folder's name: five parts stay below the 255 of every file system


def run_id(plain: dict[str, Any]) -> str:
    """Hash of the settings that change the result.

    Args:
        plain: a RunConfig as nested dicts (`records.asdict`, or `config.json` read back).

    Returns:
        12 hexadecimal characters. Numbers that are equal for their field's type hash equally (`lr: 1` and `lr: 1.0`), but
        a count and a fraction do not (`blocks: 1` and `blocks: 1.0`). Weights taken from a run's folder count as that
        run, wherever the folder lies.
    """
    left_out = set(NOT_IN_THE_RESULT)
    if plain["dataset"]["source"] in ROOT_IS_THE_DATA:
        left_out.remove("dataset.root")
    settings = _canonical(essential(plain), RunConfig, "", left_out)
    settings["model"]["weights"] = _origin(settings["model"]["weights"])
    settings |= {"cache": kept} if (kept := _kept(settings.pop("cache", {}), settings)) else {}
    return _digest(settings)


def parts_id(plain: dict[str, Any]) -> str:
    """Hash of the settings that decide what a run is built of: if one of two runs with the same hash can run, so can the other.

    Args:
        plain: a RunConfig as nested dicts.

    Returns:
        12 hexadecimal characters.
    """
    return _digest(_canonical(plain, RunConfig, "", set(NOT_IN_THE_PARTS)))


@functools.cache  # of the keys that a sweep names; each of its cells asks
def in_the_parts(key: str) -> bool:
    """Whether a key changes what a run is built of. The name of a group does: its options may set anything."""
    if is_dataclass(_hints(RunConfig).get(key)):
        return True
    return not any(key == left_out or key.startswith(f"{left_out}.") for left_out in NOT_IN_THE_PARTS)


def _digest(settings: Any) -> str:
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def essential(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what adds nothing; so a run from before there was such a group or key is the same run."""
    kept = {group: values for group, values in plain.items() if group not in ADDED or values["name"] != "none"}
    if "regularizer" in kept and kept["regularizer"]["name"] != "co_tuning":
        kept["regularizer"] = {key: value for key, value in kept["regularizer"].items() if key not in CO_TUNING}
    if kept["dataset"].get("folds") is None:
        kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "folds"}
    freeze = kept["freeze_strategy"]
    if freeze.get("adapter", {}).get("kind") == "none":
        kept["freeze_strategy"] = {key: value for key, value in freeze.items() if key != "adapter"}
    return kept


def strategy(plain: Mapping[str, Any]) -> str:
    """`full`, or `full + l2_sp`: the freeze strategy and what was added to it, as folders and tables name it."""
    added = (plain[group]["name"] for group in ADDED if group in essential(plain))
    return " + ".join((plain["freeze_strategy"]["name"], *added))


def folder_name(plain: dict[str, Any]) -> str:
    """`<dataset>-<model>-<strategy>-s<seed>-<run_id>`, safe on every file system."""
    names = (plain["dataset"]["name"], plain["model"]["name"], strategy(plain))
    return "-".join((*map(_safe, names), f"s{plain['seed']}", run_id(plain)))


def changes_the_result(override: str) -> bool:
    """Whether a run is another one by an override: a study goes on with more trials, other workers or another logger."""
    key = override.partition("=")[0].lstrip("+~").replace("/", ".")
    labels = {"hydra", *NOT_IN_THE_RESULT} - {"quadrant"}  # choosing a quadrant chooses its data as well
    return not any(key == label or key.startswith(f"{label}.") for label in labels)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:_LONGEST_PART] or "unnamed"


def _kept(cache: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What is stored, where that changes a number; the ids of runs in which it changes none know nothing of it."""
    kept = {name: value for name, value in cache.items() if (name, value) not in EXACT}
    images = kept.pop("images", "off")  # for random crops they are stored smaller, wherever they lie
    if settings["transform"]["augmentation"] not in ("none", "light") and images not in ("auto", "off"):
        kept["images"] = {"ram": "smaller", "disk": "smaller"}.get(images, images)
    return kept


def _origin(weights: str | None) -> str | None:
    """`.../<folder_name>/best.pt` is known by the run that wrote it, anything else by its own text."""
    path = PurePath(weights or "")
    run = re.fullmatch(r".+-([0-9a-f]{12})", path.parent.name)
    return f"run:{run[1]}/{path.name}" if run else weights


@functools.cache  # of a dozen classes; every run is known by them several times
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _canonical(value: Any, hint: Any, key: str, left_out: set[str]) -> Any:
    """`value` without the keys of `left_out`, its numbers written as the schema's type `hint` reads them."""
    kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
    if isinstance(value, dict):
        of_schema = is_dataclass(hint)
        hints = _hints(hint) if of_schema else {}
        children = {name: f"{key}.{name}".lstrip(".") for name in value}
        return {
            name: _canonical(child, hints.get(name, Any), children[name], left_out)
            for name, child in value.items()
            if children[name] not in left_out
        }
    if isinstance(value, list | tuple):
        item = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), Any)
        return [_canonical(element, item, key, left_out) for element in value]
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    return value
