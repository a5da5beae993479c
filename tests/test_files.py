"""A kill at any moment leaves the old file or the new one; a lock is held by one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourfold import files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_writer_killed_at_random_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    code = (
        "import sys; from pathlib import Path; from fourfold.files import write_json\n"
        "for i in range(10**6): write_json(Path(sys.argv[1]), [i] * 50_000)"
    )
    for delay in (0.02, 0.05, 0.11):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        values = files.read_json(path)
        assert len(values) == 50_000
        assert len(set(values)) == 1


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_jsonl(path, {"epoch": 0})
    files.append_jsonl(path, {"epoch": 1})
    path.write_text(path.read_text() + '{"epoch": 2, "lo')
    assert files.read_jsonl(path) == [{"epoch": 0}, {"epoch": 1}]


def test_a_lock_keeps_others_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fourfold.files import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    waiting = (
        "import sys; from pathlib import Path; from fourfold.files import lock\nwith lock(Path(sys.argv[1])): print('mine')"
    )
    second = subprocess.Popen([sys.executable, "-c", waiting, str(path)], stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=1)
    child.kill()
    out, _ = second.communicate(timeout=30)
    child.communicate()
    assert out == "mine\n"


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"größe": 1})
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"größe": 1}
