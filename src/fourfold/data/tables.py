"""The user's own images: a table of their paths and labels."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourfold.config import ConfigError, nearest
from fourfold.data.pools import SPLIT_NAMES, Files, Pool, Source, class_labels


def table(
    root: Path, task: str, *, file: str, path_column: str, label_column: str, split_column: str, separator: str
) -> Source:
    """A table of image paths and labels.

    Args:
        root: Folder that `file` is relative to; the paths in the table are relative to the table.
        file: UTF-8, with the names of the columns in the first line; between them commas, semicolons or tabs.
        task: classification (the label is a name), multilabel (names joined by `separator`, or nothing), or regression (a
            number).
        split_column: Says train, val or test for each image; a table without this column is split by Fourfold.

    Raises:
        ConfigError: for a missing table, column or image file, and for an empty or unreadable label; it names the line.
    """
    place = root / file
    if not place.is_file():
        raise ConfigError(
            f"dataset.kwargs.file={file} is not a file in dataset.root={root}: give the table of paths and labels"
        )
    columns, rows = _read(place)
    for key, column in (("path_column", path_column), ("label_column", label_column)):
        if column not in columns:
            raise ConfigError(
                f"dataset.kwargs.{key}={column} is not a column of {place}, which has {', '.join(columns) or 'none'}"
                f"{nearest(column, columns)}"
            )
    words: dict[str, list[tuple[int, str]]] = {}
    paths: dict[str, list[Path]] = {}
    missing: list[str] = []
    for line, row in rows:
        split = (row.get(split_column) or "train").strip().lower()
        if split not in SPLIT_NAMES:
            raise ConfigError(f"line {line} of {place} has {split_column}={split}: write train, val or test")
        image = place.parent / (row[path_column] or "")
        if not image.is_file():
            missing.append(f"line {line} of {place} names the image {image}, which does not exist")
        paths.setdefault(SPLIT_NAMES[split], []).append(image)
        words.setdefault(SPLIT_NAMES[split], []).append((line, (row[label_column] or "").strip()))
    if missing:
        others = f", and {len(missing) - 1} more do the like" if len(missing) > 1 else ""
        raise ConfigError(f"{missing[0]}{others}: correct the path")
    if "train" not in words:
        raise ConfigError(f"{place} holds no training image: add rows, or write train into the column {split_column}")
    classes = _names(words["train"], task, separator)
    pools = {split: Pool(Files(paths[split]), _table_labels(words[split], task, classes, separator, place)) for split in words}
    return Source(pools["train"], pools.get("val"), pools.get("test"), classes)


def _read(place: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and each row with its line. What stands between columns is what the first line has most of: , ; or tab."""
    try:
        text = place.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is no text in UTF-8 (byte {error.start}): save it as such, in Excel as CSV UTF-8") from None
    between = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text), delimiter=between, skipinitialspace=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        return [*reader.fieldnames], [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ConfigError(f"line {reader.line_num + 1} of {place} cannot be read ({error}): correct it") from None


def _names(words: list[tuple[int, str]], task: str, separator: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    names = {name for _, word in words for name in (_several(word, separator) if task == "multilabel" else [word])} - {""}
    return tuple(sorted(names, key=lambda name: (int(name), "") if name.isdecimal() else (float("inf"), name)))


def _several(word: str, separator: str) -> list[str]:
    return [name.strip() for name in word.split(separator) if name.strip()]


def _table_labels(words: list[tuple[int, str]], task: str, classes: tuple[str, ...], separator: str, place: Path) -> Tensor:
    numbers = {name: i for i, name in enumerate(classes)}
    multi_hot = torch.zeros(len(words), len(classes))
    values: list[float] = []
    for row, (line, word) in enumerate(words):
        if task == "multilabel":
            for name in _several(word, separator):
                multi_hot[row, _number(name, numbers, line, place)] = 1
        elif not word:
            raise ConfigError(f"line {line} of {place} has no label: fill it in or remove the line")
        elif task == "classification":
            values.append(_number(word, numbers, line, place))
        else:
            values.append(_value(word, line, place))
    if task == "multilabel":
        return multi_hot
    return class_labels(values) if task == "classification" else torch.tensor(values)


def _number(name: str, numbers: dict[str, int], line: int, place: Path) -> int:
    if name not in numbers:
        raise ConfigError(
            f"line {line} of {place} has the label {name}, which no training image has{nearest(name, numbers)}: "
            "correct it or remove the line"
        )
    return numbers[name]


def _value(word: str, line: int, place: Path) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ConfigError(
            f"line {line} of {place} has the label {word}, which is not a number: dataset.task=regression needs one"
        )
    return value
