"""Rows on disk: shared, whole after a kill, within their limit, and never those of other images."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold import activations
from fourfold.activations import Held, Near, NoRoom, Part, Rows, Stale, Store

PARTS = (Part((2, 3), torch.float32), Part((4,), torch.bfloat16))
ROW = 24 + 8  # bytes


def rows(keys: np.ndarray) -> Rows:
    numbers = torch.from_numpy(keys).float()
    return numbers[:, None, None].expand(-1, 2, 3) + 0.5, numbers[:, None].expand(-1, 4).to(torch.bfloat16)


class Producer:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        self.asked += keys.tolist()
        for some in np.array_split(keys, max(1, len(keys) // 2)):
            yield some, rows(some)


def same(store: Store | Held | Near, keys: list[int]) -> bool:
    wanted = np.array(keys)
    return all(torch.equal(a, b) for a, b in zip(store.take(store.places(wanted)), rows(wanted), strict=True))


def test_a_row_is_computed_once_whoever_asks(tmp_path: Path) -> None:
    first, second, produce = Store(tmp_path / "k", PARTS, 10**6), Store(tmp_path / "k", PARTS, 10**6), Producer()
    assert first.fill(np.array([5, 3, 5]), produce) == 2
    assert second.fill(np.array([3, 4, 5]), produce) == 1
    assert [key for key in produce.asked if key == 4] == [4]
    assert same(second, [5, 4, 3, 3])
    assert same(Store(tmp_path / "k", PARTS, 10**6), [3, 4, 5])


def test_a_copy_on_the_device_holds_the_rows_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "CHUNK", 2 * ROW)  # bytes, so in several pieces
    store = Store(tmp_path / "k", PARTS, 10**6)
    store.fill(np.array([7, 5, 3, 4, 9]), Producer())
    near = Near(store, torch.device("cpu"))
    assert (len(near), near.bytes) == (5, 5 * ROW)
    assert same(near, [3, 9, 7, 7])
    store.fill(np.array([1]), Producer())
    assert (len(store), len(near)) == (6, 5)
    assert same(near, [5, 4])


def test_what_a_kill_leaves_behind_is_written_over(tmp_path: Path) -> None:
    Store(tmp_path / "k", PARTS, 10**6).fill(np.array([0, 1, 2]), Producer())
    with (tmp_path / "k" / "rows.bin").open("ab") as file:
        file.write(b"half a row")
    store = Store(tmp_path / "k", PARTS, 10**6)
    assert store.fill(np.arange(6), Producer()) == 3
    assert same(store, [*range(6)])
    assert (tmp_path / "k" / "rows.bin").stat().st_size == 6 * ROW


KILLED = """
import sys, time
import numpy as np
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_activations as t
t.activations.KEEP_EVERY = 0.0
def slowly(keys):
    for key in keys:
        yield np.array([key]), t.rows(np.array([key]))
        print(key, flush=True)
        time.sleep(0.05)
t.Store(Path(sys.argv[1]), t.PARTS, 10**6).fill(np.arange(1000), slowly)
"""


def test_a_writer_that_is_killed_loses_nothing_that_was_named_and_blocks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "k"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while writer.stdout.readline() != "5\n":
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
    produce = Producer()
    store = Store(tmp_path / "k", PARTS, 10**6)
    store.fill(np.arange(20), produce)
    assert same(store, [*range(20)])
    assert len(produce.asked) <= 4 + 20 - 5  # a few rows are compared, the first five are there


def test_the_least_recently_used_store_makes_room(tmp_path: Path) -> None:
    limit = 3 * 10 * ROW + 700  # three stores and their indices, but not four
    stores = [Store(tmp_path / name, PARTS, limit) for name in "abc"]
    for age, store in enumerate(stores):
        store.fill(np.arange(10), Producer())
        os.utime(store.folder, (1000 + age, 1000 + age))
    stores[0].fill(np.arange(10), Producer())  # used again
    Store(tmp_path / "d", PARTS, limit).fill(np.arange(10), Producer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert same(stores[1], [1, 2])  # who has it open keeps it
    stores[1].touch()
    stores[2].touch()
    os.utime(tmp_path / "d", (2000, 2000))
    Store(tmp_path / "e", PARTS, limit).fill(np.arange(10), Producer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "e"], "who reads on without filling is in use as well"


def test_what_does_not_fit_is_refused_before_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    produce = Producer()
    with pytest.raises(NoRoom, match=r"more than cache\.limit_gb allows"):
        Store(tmp_path / "k", PARTS, 10 * ROW).fill(np.arange(11), produce)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=activations.FREE_BYTES))
    with pytest.raises(NoRoom, match="has no room"):
        Store(tmp_path / "k", PARTS, 10**6).fill(np.arange(2), produce)
    assert produce.asked == []


def test_other_images_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    Store(tmp_path / "k", PARTS, 10**6).fill(np.arange(4), Producer())

    def others(keys: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        yield keys, rows(keys + 7)

    with pytest.raises(Stale, match="other activations than these images give now"):
        Store(tmp_path / "k", PARTS, 10**6).fill(np.arange(8), others)


def test_memory_has_the_face_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    held, produce = Held(PARTS), Producer()
    assert held.fill(np.array([4, 2]), produce) == 2
    assert held.fill(np.array([2, 9]), produce) == 1
    assert same(held, [9, 2, 4, 2])
    assert same(Near(held, torch.device("cpu")), [9, 2, 4, 2])
    monkeypatch.setattr(activations, "free_memory", lambda: 10 * ROW)
    with pytest.raises(NoRoom, match="do not fit into memory"):
        held.fill(np.arange(100, 106), produce)


def test_a_value_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    def large(keys: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        yield keys, (torch.full((len(keys), 1), 1e6),)

    with pytest.raises(OverflowError, match=r"choose cache\.dtype=fp32 or bf16"):
        Store(tmp_path / "k", [Part((1,), torch.float16)], 10**6).fill(np.arange(2), large)
