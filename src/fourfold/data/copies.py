"""Copies: image files that hold the same bytes. A test image that was trained on tells nothing."""

import functools
import hashlib
from pathlib import Path

import numpy as np

from fourfold.data.pools import Files, Pool, readable

END = 4096  # bytes; compressed images of one size that end alike are nearly always the same


def copies(pool: Pool, places: np.ndarray, of: Pool, at: np.ndarray) -> dict[int, int]:
    """Which images of `pool` at `places` are copies of images `of` a pool `at` other places: from the former to the latter.

    Only files are looked at, and few of them are read: of equal size first the ends, and of equal ends all.

    Raises:
        ConfigError: a file is not there or cannot be read.
    """
    if not isinstance(pool.images, Files) or not isinstance(of.images, Files):
        return {}
    alike = np.intersect1d(pool.images.sizes[places], of.images.sizes[at])
    these, those = _of_sizes(pool.images, places, alike), _of_sizes(of.images, at, alike)
    for digest in (_end, _whole):
        shared = {digest(path) for path in these.values()} & {digest(path) for path in those.values()}
        these, those = ({place: path for place, path in side.items() if digest(path) in shared} for side in (these, those))
    first = {_whole(path): place for place, path in reversed(those.items())}
    return {place: first[_whole(path)] for place, path in these.items()}


def _of_sizes(files: Files, places: np.ndarray, sizes: np.ndarray) -> dict[int, Path]:
    return {int(place): files.paths[place] for place in places[np.isin(files.sizes[places], sizes)]}


@functools.lru_cache(2**17)  # runs of a process ask for the same
def _end(path: Path) -> bytes:
    with readable(path), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END))
        return file.read()


@functools.lru_cache(2**17)
def _whole(path: Path) -> bytes:
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
