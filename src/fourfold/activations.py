"""Activations of images on disk, computed once and shared by the runs, processes and hosts that see the folder.

A store is a folder with `rows.bin`, a row of equal length for each image, and `index.npy`, which says whose row is where. Rows
are appended first and named by the index afterwards, so a kill leaves at most rows that nobody knows of, and the next writer
writes over them. One process writes at a time; readers map what the index names, which never changes.
"""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fourfold.files import lock, replacing

log = logging.getLogger(__name__)

KEEP_EVERY = 30.0  # seconds of computing that a kill may cost
FREE_BYTES = 1 << 30  # of the disk, left to others
CHUNK = 1 << 26  # bytes that are copied to a device at a time
CHECK = 4  # images whose stored rows are compared with fresh ones when a store is used again

Rows = tuple[Tensor, ...]  # activations of some images, each [N, ...]
Produce = Callable[[np.ndarray], Iterator[tuple[np.ndarray, Rows]]]  # keys of images -> some of them at a time, with their rows


@dataclass(frozen=True)
class Part:
    """One tensor of an image's row."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


TOLERANCE = 0.02  # of the largest value: kernels differ between batch sizes, half precision rounds; other images differ more


class Stale(RuntimeError):
    """What is stored is not what the images give now: the images behind a name have changed."""


class NoRoom(RuntimeError):
    """The rows would not fit where they should lie."""


class Store:
    """Rows of activations by key.

    Args:
        folder: The store's own; its name is a hash of all that its rows depend on beside the image.
        parts: What a row consists of.
        limit_bytes: Of all stores beside this one together; the least recently used ones make room.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], limit_bytes: int) -> None:
        self.folder, self.parts, self.limit_bytes = folder, tuple(parts), limit_bytes
        self.row_bytes = sum(part.bytes for part in parts)
        self._places: dict[int, int] = {}
        self._rows: np.ndarray = np.empty((0, self.row_bytes), np.uint8)
        self._load()

    def fill(self, keys: np.ndarray, produce: Produce, *, check: bool = True) -> int:
        """Compute the rows that are missing, one process at a time; the others wait, and find them done.

        Args:
            keys: int64 [N], each stands for one image (and view).
            produce: Gives the activations of keys.
            check: Compare a few rows that are there with fresh ones; once in a process is enough.

        Returns:
            How many rows this call has computed.

        Raises:
            NoRoom: they would not fit.
            Stale: rows that are there differ from what `produce` gives for them.
        """
        if check and len(self._missing(keys)) < len(set(keys.tolist())):
            self._check(keys, produce)
        computed = 0
        if len(self._missing(keys)):
            with lock(self.folder / ".lock"):
                self._load()
                missing = self._missing(keys)
                self._make_room(len(missing) * self.row_bytes)
                self._write(produce(missing) if len(missing) else iter(()))
                computed = len(missing)
            self._load()
        self.touch()
        return computed

    def touch(self) -> None:
        """Say that it is in use: the least recently used stores make room. One that has gone all the same is still mapped."""
        with suppress(FileNotFoundError):
            os.utime(self.folder)

    def __len__(self) -> int:
        """Rows that are there."""
        return len(self._places)

    def has(self, keys: np.ndarray) -> bool:
        """Whether all rows are there."""
        return all(key in self._places for key in keys.tolist())

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where the rows of these keys are, for `take`; all must be there."""
        return np.array([self._places[key] for key in keys.tolist()], dtype=np.int64)

    def take(self, places: np.ndarray) -> Rows:
        """The activations at these places, each [N, ...], copied out of the file."""
        return self._parted(torch.from_numpy(self._rows[places]))

    def copy_into(self, columns: Rows) -> None:
        """All rows, to tensors [rows, ...] on a GPU, by way of memory that it reads by itself."""
        size = max(1, CHUNK // self.row_bytes)
        way = torch.empty(min(size, len(self)), self.row_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for start in range(0, len(self), size):
            some = self._rows[start : start + size]
            np.copyto(way.numpy()[: len(some)], some)
            there = way[: len(some)].to(columns[0].device)
            for column, piece in zip(columns, self._parted(there), strict=True):
                column[start : start + len(some)] = piece

    def _parted(self, rows: Tensor) -> Rows:
        """Rows [N, row_bytes] as the activations that they are."""
        return tuple(
            piece.contiguous().view(part.dtype).view(len(rows), *part.shape)
            for piece, part in zip(rows.split([part.bytes for part in self.parts], dim=1), self.parts, strict=True)
        )

    def _missing(self, keys: np.ndarray) -> np.ndarray:
        return np.array([key for key in dict.fromkeys(keys.tolist()) if key not in self._places], dtype=np.int64)

    def _load(self) -> None:
        """Map what the index names."""
        index = self.folder / "index.npy"
        named = np.load(index) if index.exists() else np.empty(0, np.int64)
        self._places = {int(key): place for place, key in enumerate(named)}
        if len(named):
            self._rows = np.memmap(self.folder / "rows.bin", np.uint8, "r", shape=(len(named), self.row_bytes))

    def _check(self, keys: np.ndarray, produce: Produce) -> None:
        """Compare a few stored rows with fresh ones."""
        there = np.array([key for key in dict.fromkeys(keys.tolist()) if key in self._places][:CHECK], dtype=np.int64)
        for some, fresh in produce(there):
            for kept, now in zip(self.take(self.places(some)), fresh, strict=True):
                off = (kept.double() - now.to("cpu", torch.float64)).abs().max()
                if not off <= TOLERANCE * kept.double().abs().max().clamp(min=1e-6):
                    raise Stale(f"{self.folder} holds other activations than these images give now: remove it")

    def _write(self, produced: Iterator[tuple[np.ndarray, Rows]]) -> None:
        """Append rows, and name them from time to time."""
        named = list(self._places)
        with (self.folder / "rows.bin").open("ab") as file:
            file.truncate(len(named) * self.row_bytes)  # what a kill has left behind
            saved = time.monotonic()
            for keys, rows in produced:
                file.write(self._bytes(rows))
                named += keys.tolist()
                if time.monotonic() - saved > KEEP_EVERY:
                    self._name(named, file)
                    saved = time.monotonic()
            self._name(named, file)

    def _name(self, keys: list[int], file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())
        with replacing(self.folder / "index.npy") as path, path.open("wb") as index:
            np.save(index, np.array(keys, dtype=np.int64))

    def _bytes(self, rows: Rows) -> memoryview:
        pieces = [
            stored(part, tensor).reshape(len(tensor), -1).view(torch.uint8)
            for part, tensor in zip(self.parts, rows, strict=True)
        ]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).numpy().data

    def _make_room(self, more: int) -> None:
        """Remove the least recently used stores until this one may grow by `more` bytes.

        Raises:
            NoRoom: it may not, even alone.
        """
        own = len(self._places) * self.row_bytes
        if own + more > self.limit_bytes:
            raise NoRoom(f"{(own + more) / 1e9:.1f} GB of activations are more than cache.limit_gb allows")
        others = sorted(
            (each for each in self.folder.parent.iterdir() if each != self.folder and each.is_dir()),
            key=lambda each: each.stat().st_mtime,
        )
        sizes = {each: sum(file.stat().st_size for file in each.iterdir() if file.is_file()) for each in others}
        while others and (
            sum(sizes.values()) + own + more > self.limit_bytes
            or shutil.disk_usage(self.folder.parent).free < more + FREE_BYTES
        ):
            oldest = others.pop(0)
            log.info("making room: %s was not used for longest", oldest)
            del sizes[oldest]
            shutil.rmtree(oldest, ignore_errors=True)  # who has it mapped keeps it; who wants it again computes it again
        if shutil.disk_usage(self.folder.parent).free < more + FREE_BYTES:
            raise NoRoom(f"the disk of {self.folder.parent} has no room for {more / 1e9:.1f} GB of activations")


class Held:
    """Rows in the memory of this process, where the disk has no room for them. The face of `Store`."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.row_bytes = sum(part.bytes for part in parts)
        self._places: dict[int, int] = {}
        self._rows: Rows = tuple(torch.empty(0, *part.shape, dtype=part.dtype) for part in parts)

    def fill(self, keys: np.ndarray, produce: Produce) -> int:
        """As `Store.fill`.

        Raises:
            NoRoom: they would take more than half of the memory that is free.
        """
        missing = np.array([key for key in dict.fromkeys(keys.tolist()) if key not in self._places], dtype=np.int64)
        if len(missing) * self.row_bytes > free_memory() // 2:
            raise NoRoom(f"{len(missing) * self.row_bytes / 1e9:.1f} GB of activations do not fit into memory")
        blocks = [self._rows]
        for some, rows in produce(missing) if len(missing) else ():
            self._places |= {int(key): len(self._places) + i for i, key in enumerate(some)}
            blocks.append(tuple(stored(part, tensor) for part, tensor in zip(self.parts, rows, strict=True)))
        self._rows = tuple(torch.cat(column) for column in zip(*blocks, strict=True))
        return len(missing)

    def __len__(self) -> int:
        """As `Store.__len__`."""
        return len(self._places)

    def has(self, keys: np.ndarray) -> bool:
        """As `Store.has`."""
        return all(key in self._places for key in keys.tolist())

    def places(self, keys: np.ndarray) -> np.ndarray:
        """As `Store.places`."""
        return np.array([self._places[key] for key in keys.tolist()], dtype=np.int64)

    def take(self, places: np.ndarray) -> Rows:
        """As `Store.take`."""
        return tuple(column[torch.from_numpy(places)] for column in self._rows)

    def copy_into(self, columns: Rows) -> None:
        """As `Store.copy_into`."""
        for column, own in zip(columns, self._rows, strict=True):
            column.copy_(own)

    def touch(self) -> None:
        """As `Store.touch`: nobody removes it."""


class Near:
    """A copy of a store's rows on the device that computes with them: a GPU is faster than the host that would gather its rows.
    The face of `Store` without its keys.

    Args:
        store: Which may grow later; the copy does not.
        device: With memory for all rows.
    """

    def __init__(self, store: Store | Held, device: torch.device) -> None:
        self.store, self.bytes = store, len(store) * store.row_bytes
        self._rows: Rows = tuple(torch.empty(len(store), *part.shape, dtype=part.dtype, device=device) for part in store.parts)
        store.copy_into(self._rows)

    def __len__(self) -> int:
        """As `Store.__len__`."""
        return len(self._rows[0])

    def places(self, keys: np.ndarray) -> np.ndarray:
        """As `Store.places`."""
        return self.store.places(keys)

    def take(self, places: np.ndarray) -> Rows:
        """As `Store.take`, on the device."""
        there = torch.from_numpy(places).to(self._rows[0].device, non_blocking=True)
        return tuple(column.index_select(0, there) for column in self._rows)


def stored(part: Part, tensor: Tensor) -> Tensor:
    """Activations as they are kept: on the CPU, contiguous, in the part's type.

    Raises:
        OverflowError: a value is too large for that type.
    """
    kept = tensor.to(part.dtype).contiguous().cpu()  # a GPU brings it into order in a hundredth of the CPU's time
    if part.dtype != tensor.dtype and not bool(torch.isfinite(kept).all()):
        raise OverflowError(f"an activation is too large for {part.dtype}: choose cache.dtype=fp32 or bf16")
    return kept


def free_memory() -> int:
    """Bytes that processes may still take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
