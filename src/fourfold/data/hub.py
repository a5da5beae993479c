"""Datasets of the Hugging Face Hub, through the optional package `datasets`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fourfold.config import ConfigError, nearest
from fourfold.data.pools import Pool, Source, class_labels


@dataclass(frozen=True)
class Column:
    """The image column of one split."""

    dataset: Any
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            image = self.dataset[index][self.name]
        except OSError as error:
            raise ConfigError(f"image {index} of the column {self.name} cannot be read ({error}): remove it") from error
        if not isinstance(image, Image.Image):
            raise ConfigError(
                f"dataset.kwargs.image={self.name} holds {type(image).__name__}, not images: choose another column"
            )
        return image


def huggingface(
    root: Path,
    *,
    path: str | None,
    config: str | None,
    revision: str | None,
    train: str,
    val: str | None,
    test: str | None,
    image: str | None,
    label: str | None,
) -> Source:
    """Load a dataset from the Hub, or from a folder.

    Args:
        root: The package's cache.
        path: owner/name on the Hub, or what else `datasets.load_dataset` takes.
        config: Which of its configurations; None is the default one.
        revision: Branch, tag or commit; None is the newest.
        train: Its name of the training split; so `val` and `test`, None where it has none.
        image: Column of the images; None is the first of the type Image.
        label: Column of the labels; None is the first of the type ClassLabel.

    Raises:
        ConfigError: if the package is missing, or the dataset is not there or has no such split or column.
    """
    if path is None:
        raise ConfigError("dataset.kwargs.path=null, but dataset=huggingface needs one: give dataset.kwargs.path=owner/name")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("dataset=huggingface needs the package datasets: pip install 'fourfold[hf]'") from error
    try:
        loaded = datasets.load_dataset(path, config, revision=revision, cache_dir=str(root / "huggingface"))
    except Exception as error:  # the package and its HTTP client raise many kinds
        raise ConfigError(
            f"dataset.kwargs.path={path} cannot be loaded ({_first_line(error)}): check the name and the network, or give the "
            "path of a local copy"
        ) from error
    chosen = {key: name for key, name in (("train", train), ("val", val), ("test", test)) if name is not None}
    for key, name in chosen.items():
        if name not in loaded:
            raise ConfigError(
                f"dataset.kwargs.{key}={name} is not a split of {path}, which has {', '.join(loaded)}{nearest(name, loaded)}: "
                f"choose one{'' if key == 'train' else ' or null'}"
            )
    features = loaded[train].features
    image = image or _first_of(features, "Image", path)
    label = label or _first_of(features, "ClassLabel", path)
    for key, column in (("image", image), ("label", label)):
        if column not in features:
            raise ConfigError(f"dataset.kwargs.{key}={column} is not a column of {path}: choose from {', '.join(features)}")
    classes, numbers = _classes(loaded[train], label)
    pools = {
        key: Pool(Column(loaded[name], image), class_labels([_number(word, numbers, path) for word in loaded[name][label]]))
        for key, name in chosen.items()
    }
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _classes(dataset: Any, label: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """(names, value in the column -> class number)."""
    names = getattr(dataset.features[label], "names", None)
    if names is not None:
        return tuple(names), {i: i for i in range(len(names))}
    values = sorted(set(dataset[label]))
    return tuple(map(str, values)), {value: i for i, value in enumerate(values)}


def _number(word: Any, numbers: dict[Any, int], path: str) -> int:
    if word not in numbers:
        raise ConfigError(f"{path} has the label {word}, which no training image has: choose another label column or split")
    return numbers[word]


def _first_of(features: Any, kind: str, path: str) -> str:
    for name, feature in features.items():
        if type(feature).__name__ == kind:
            return name
    key = {"Image": "image", "ClassLabel": "label"}[kind]
    raise ConfigError(f"{path} has no column of the type {kind}: give dataset.kwargs.{key}, one of {', '.join(features)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
