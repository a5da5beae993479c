"""Images that are decoded and brought to their size once: on disk for all runs, processes and hosts, or in memory.

Kept is what an image is before anything random happens to it, so that kept images are bit for bit those decoded anew. Only
`cache.images=ram` and `disk` make the images of random crops smaller before, which changes pixels (see `transforms.training`).
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fourfold.activations import Held, NoRoom, Part, Rows, Stale, Store
from fourfold.config import ConfigError
from fourfold.data.images import ImageSet
from fourfold.data.pools import Files, Pool
from fourfold.data.transforms import LONGEST, Prepare, pixels_of

log = logging.getLogger(__name__)
CHUNK = 32  # images that are decoded before they are written


class KeptImages(ImageSet):
    """As `ImageSet`, of images that `ready` has decoded; the others are decoded when asked for.

    Args:
        prepare: Whose fixed steps are done once.
        short: Pixels of the short side of an image that is kept for random crops; None where every image is square.
        place: auto, ram or disk (see docs/data.md).
        folder: Where the stores of kept images lie.
        origin: What tells this pool of images from any other.
    """

    def __init__(
        self,
        pool: Pool,
        indices: np.ndarray,
        prepare: Prepare,
        size: int,
        *,
        short: int | None,
        place: str,
        folder: Path,
        origin: dict[str, Any],
    ) -> None:
        super().__init__(pool, indices, prepare, size)
        self.place, self.folder, self.origin = place, folder, origin
        self.parts = _parts(prepare.in_chans, size, short)
        self._rows: Store | Held | None = None
        self._there: set[int] = set()  # images of the pool that `ready` has seen to

    def ready(self, positions: Sequence[int], num_workers: int) -> None:
        """Decode the images at these positions that are not kept yet; nobody draws random numbers for that.

        Raises:
            ConfigError: an image cannot be read.
        """
        keys = np.unique(self.indices[np.asarray(positions, dtype=np.int64)])
        if self.place == "nowhere" or self._there.issuperset(keys.tolist()):
            return
        rooms = [self._rows] if self._rows is not None else [room for room in self._rooms(len(keys)) if room is not None]
        for room in rooms:
            try:
                decoded = room.fill(keys, lambda wanted: self._decoded(wanted, num_workers))
            except (NoRoom, OSError, Stale) as error:
                log.warning("images are not kept on %s: %s", "disk" if isinstance(room, Store) else "memory", error)
                continue
            if decoded:
                log.info("decoded %d images once, into %s", decoded, getattr(room, "folder", "memory"))
            self._rows = room
            self._there.update(keys.tolist())
            return
        self._rows, self.place = None, "nowhere"

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        image = self._fixed(int(self.indices[position]))
        return pixels_of(image if self.prepare.vary is None else self.prepare.vary(image)), self.labels[position]

    def row(self, index: int) -> Rows:
        """What is kept of an image of the pool: its size and uint8 bytes [height x width x channels], or [C, H, W] of a square.

        Raises:
            ConfigError: the image cannot be read.
        """
        image = self.prepare.fixed(self.images[index])
        if len(self.parts) == 1:
            return (pixels_of(image),)
        pixels = pixels_of(image).permute(1, 2, 0)
        flat = torch.zeros(self.parts[1].shape, dtype=torch.uint8)
        flat[: pixels.numel()] = pixels.reshape(-1)
        return torch.tensor(pixels.shape[:2], dtype=torch.int32), flat

    def _fixed(self, index: int) -> Image.Image | Tensor:
        """The image after the fixed steps: a picture where the steps of an image file give one and it is not square."""
        row = self._kept([index])
        parts = tuple(part[0] for part in row) if row is not None else self.row(index)
        if len(parts) == 1:
            return parts[0]
        height, width = parts[0].tolist()
        chans = self.prepare.in_chans
        pixels = parts[1][: height * width * chans].view(height, width, chans)
        if chans in (1, 3):
            return Image.fromarray(pixels.numpy().squeeze(-1) if chans == 1 else pixels.numpy())
        return pixels.permute(2, 0, 1)

    def _kept(self, indices: Sequence[int]) -> Rows | None:
        """The rows of images of the pool, if all of them are kept."""
        try:
            return None if self._rows is None else self._rows.take(self._rows.places(np.asarray(indices, dtype=np.int64)))
        except KeyError:
            return None

    def _rooms(self, count: int) -> Iterator[Store | Held | None]:
        """Where the rows may lie, in the order of preference. What is read often should fit into memory on disk as well."""
        needed = count * sum(part.bytes for part in self.parts)
        if self.place == "auto" and needed > _memory() // 2:
            return
        if self.place != "ram":
            yield self._store()
        yield Held(self.parts)

    def _store(self) -> Store | None:
        folder = self.folder / self._name()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = sum(file.stat().st_size for file in folder.parent.rglob("rows.bin"))
            return Store(folder, self.parts, limit_bytes=taken + shutil.disk_usage(folder).free // 2)
        except OSError as error:
            log.warning("images are not kept on disk: %s", error)
            return None

    def _name(self) -> str:
        """A hash of all that the rows depend on: the same images, in the same order, made the same size by the same decoder."""
        known = {
            **self.origin,
            "steps": repr(self.prepare.steps),
            "as_pil": self.prepare.as_pil,
            "in_chans": self.prepare.in_chans,
            "parts": repr(self.parts),
            "versions": [PIL.__version__, torchvision.__version__],
            "images": len(self.images),
        }
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        for path, size, changed in self.images.facts() if isinstance(self.images, Files) else ():
            digest.update(f"|{path.absolute()}|{size}|{changed}".encode())
        return digest.hexdigest()[:24]

    def _decoded(self, wanted: np.ndarray, num_workers: int) -> Iterator[tuple[np.ndarray, Rows]]:
        """The rows of images of the pool, some at a time."""
        chunks = [wanted[start : start + CHUNK].tolist() for start in range(0, len(wanted), CHUNK)]
        reader = _Rows(self)
        made = (
            DataLoader(
                reader,
                sampler=chunks,
                batch_size=None,
                num_workers=min(num_workers, len(chunks)),
                generator=torch.Generator(),  # the DataLoader would draw from the global one
            )
            if num_workers and len(chunks) > 1
            else map(reader.__getitem__, chunks)
        )
        for keys, rows in zip(chunks, made, strict=True):
            if isinstance(rows, ConfigError):
                raise rows
            yield np.asarray(keys), tuple(rows)


class KeptSquares(KeptImages):
    """Kept images to which nothing random happens: given by whole batches."""

    def take(self, positions: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """A whole batch at once: (uint8 [N, C, H, W], targets)."""
        indices = self.indices[positions]
        kept = self._kept(indices.tolist())
        pixels = kept[0] if kept is not None else torch.stack([self.row(int(index))[0] for index in indices])
        return pixels, self.labels[positions]


class _Rows(Dataset):
    """Rows of several images, made in this process or in a worker."""

    def __init__(self, kept: KeptImages) -> None:
        self.kept = kept

    def __getitem__(self, indices: list[int]) -> Rows | ConfigError:
        """An error is handed over as a value, because raising in a worker would bury its sentence in a traceback."""
        try:
            rows = [self.kept.row(index) for index in indices]
        except ConfigError as error:
            return error
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _parts(in_chans: int, size: int, short: int | None) -> tuple[Part, ...]:
    if short is None:
        return (Part((in_chans, size, size), torch.uint8),)
    return Part((2,), torch.int32), Part((LONGEST * short * short * in_chans,), torch.uint8)


def _memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
