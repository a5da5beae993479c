"""What the runs of a study left on disk, read back: one `Result` for each finished run, one `Unfinished` for every other."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fourfold import identity
from fourfold.files import read_json, read_jsonl

RUN_FILES = frozenset({"result.json", "config.json", "failure.json"})  # any of them makes a folder a run's folder
# what foreign, torn (ValueError) or closed files lead to
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Quadrant:
    """The label of a cell of the 2 x 2 rule: `similarity` similar | middle | different, `size` small | large."""

    name: str
    similarity: str | None
    size: str | None
    textbook: str | None  # the strategy that the textbook would choose


@dataclass(frozen=True)
class Result:
    """A finished run, as far as a study needs it. Metrics as the run wrote them: fractions are 0 to 1."""

    folder: Path
    run_id: str
    study: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    task: str
    dataset: str
    train_size: str  # in words: "5 per class", "100 images", "10 %", "all"
    quadrant: Quadrant | None
    model: str
    strategy: str  # `full`, or `full + l2_sp`
    pretrained: bool
    seed: int
    optimizer: Mapping[str, Any]  # flat, such as {"lr": 0.001, "kwargs.fused": True}
    val: Mapping[str, float]
    test: Mapping[str, float]
    images: Mapping[str, int]  # how many in train, val, test; empty where the run did not say
    cut: tuple[str, ...]  # of val and test those that were cut from the training images, by the split's seed
    copies: Mapping[str, int]  # how many in val and test are copies of training images; empty where nobody could tell
    chance: float | None  # accuracy of always answering the most frequent class of the test split
    epochs: int
    best_epoch: int
    seconds: float
    params_total: int
    params_trainable: int
    manifest_hash: str | None
    test_opened: int
    proof: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    git_revision: str | None
    device: str | None
    drift: tuple[Mapping[str, Any], ...]  # block, weights, cka; empty where the run did not say

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What of `config` tells runs apart, as `flat` gives it."""
        return flat(identity.essential(self.config))


@dataclass(frozen=True)
class Unfinished:
    """A run that began and left no valid result: interrupted, failed, or still going on."""

    folder: Path
    title: str
    status: str  # interrupted | failed | unreadable
    reason: str


def collect(folder: Path) -> list[Result]:
    """Every finished run at or below `folder`, as `read_runs` gives them."""
    return read_runs(folder)[0]


def read_runs(folder: Path) -> tuple[list[Result], list[Unfinished]]:
    """Every run at or below `folder`, ordered by folder name: those that have finished, equal ones (of one `run_id`) once; and
    those without a valid `result.json`, half-written or failed, with what is known of why.

    Args:
        folder: a study's folder, a folder of studies, or a single run's folder.
    """
    found = [read_result(run) for run in run_folders(folder)]
    finished = {result.run_id: result for result in reversed([each for each in found if isinstance(each, Result)])}
    unfinished = [each for each in found if isinstance(each, Unfinished)]
    return sorted(finished.values(), key=lambda result: str(result.folder)), unfinished


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders at or below `folder` that hold a run's files; what lies inside a run is not searched."""
    for here, folders, files in os.walk(folder):
        if RUN_FILES.intersection(files):
            folders.clear()
            yield Path(here)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ("wandb", "figures"))


def read_result(folder: Path) -> Result | Unfinished:
    """The result of one run's folder, or why there is none. Reads only; never raises because of what the files hold."""
    try:
        content = read_json(folder / "result.json")
        if content["status"] == "finished":
            return _parse(content, folder)
        reason = str(content.get("error") or f"status {content['status']}")
        return Unfinished(folder, _title(content.get("config") or {}, folder), "failed", reason)
    except FileNotFoundError:
        return _without_result(folder)
    except UNREADABLE as error:
        reason = f"result.json cannot be read ({type(error).__name__}: {error})"
        return Unfinished(folder, folder.name, "unreadable", reason)


def _without_result(folder: Path) -> Unfinished:
    config = _read_mapping(folder / "config.json")
    title = _title(config, folder)
    failure = _read_mapping(folder / "failure.json")
    if failure:
        return Unfinished(folder, title, "failed", f"{failure.get('type', 'Error')}: {failure.get('message', '')}")
    try:
        return Unfinished(folder, title, "interrupted", f"{_epochs_done(folder)} of {config['trainer']['epochs']} epochs done")
    except UNREADABLE:
        return Unfinished(folder, title, "interrupted", "stopped before its first epoch")


def _epochs_done(folder: Path) -> int:
    return len(read_jsonl(folder / "metrics.jsonl"))


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def _title(config: Mapping[str, Any], folder: Path) -> str:
    try:
        return (
            f"{config['dataset']['name']} · {_train_size(config['dataset'])} · {identity.strategy(config)} · "
            f"lr {config['optimizer']['lr']:g} · seed {config['seed']}"
        )
    except UNREADABLE:
        return folder.name


def _parse(content: Mapping[str, Any], folder: Path) -> Result:
    config, metrics = content["config"], content["metrics"]
    return Result(
        folder=folder,
        run_id=str(content.get("run_id") or folder.name),
        study=str(content.get("study") or config.get("study") or folder.parent.name),
        overrides=tuple(map(str, content.get("overrides") or ())),
        config=config,
        task=config["dataset"]["task"],
        dataset=config["dataset"]["name"],
        train_size=_train_size(config["dataset"]),
        quadrant=_quadrant(config.get("quadrant")),
        model=config["model"]["name"],
        strategy=identity.strategy(config),
        pretrained=bool(config["freeze_strategy"]["pretrained"]),
        seed=int(config["seed"]),
        optimizer=flat(config["optimizer"]),
        val={name: float(value) for name, value in metrics["val"].items() if value is not None},
        test={name: float(value) for name, value in metrics["test"].items() if value is not None},
        images={split: int(number) for split, number in (content.get("images") or {}).items()},
        cut=tuple(map(str, content.get("cut", ("val",)))),  # an older run did not say
        copies={split: int(number) for split, number in (content.get("copies") or {}).items()},
        chance=_chance(content.get("confusion")),
        epochs=int(content.get("epochs") or config["trainer"]["epochs"]),
        best_epoch=int(content.get("best_epoch") or 0),
        seconds=float(content.get("seconds") or 0.0),
        params_total=int(content["params"]["total"]),
        params_trainable=int(content["params"]["trainable"]),
        manifest_hash=str(content["manifest_hash"]) if content.get("manifest_hash") else None,
        test_opened=int(content.get("test_opened") or 0),
        proof=tuple(content.get("proof") or ()),
        versions=dict(content.get("versions") or {}),
        git_revision=content.get("git_revision"),
        device=content.get("device"),
        drift=tuple(content.get("drift") or ()),
    )


def _quadrant(config: Mapping[str, Any] | None) -> Quadrant | None:
    if not config or not config.get("name"):
        return None
    return Quadrant(config["name"], config.get("similarity"), config.get("size"), config.get("textbook"))


def _train_size(dataset: Mapping[str, Any]) -> str:
    if dataset.get("shots") is not None:
        return f"{dataset['shots']} per class"
    if dataset.get("train_size") is not None:
        return f"{dataset['train_size']} images"
    if dataset.get("fraction") is not None:
        return f"{100 * dataset['fraction']:g} %"
    return "all"


def _chance(confusion: list[list[int]] | None) -> float | None:
    rows = [sum(row) for row in confusion or []]  # rows are true classes
    return max(rows) / sum(rows) if sum(rows) else None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
