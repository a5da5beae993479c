"""What is broken is told in the evening, once, and what is known to run is not tried again."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.files import lock, write_json
from fourfold.identity import parts_id
from fourfold.study import lease
from fourfold.study import preflight as room
from fourfold.study.preflight import Candidate, preflight, trying

TINY = [
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.val_size=10", "dataset.test_size=10", "model=micro_resnet",
    "freeze=from_scratch", "trainer.batch_size=8", "trainer.device=cpu", "trainer.threads=1", "logger=none",
]  # fmt: skip


def candidate(*overrides: str) -> Candidate:
    config = compose([*TINY, *overrides])
    return Candidate(parts_id(asdict(config)), " ".join(overrides), config)


SOUND = "dataset.shots=2"
BROKEN = "dataset.shots=1000"


@pytest.fixture
def told() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shots of every set-up that is really tried."""
    seen: list[int] = []
    real = room.attempted

    def counted(config, options):
        seen.append(config.dataset.shots)
        return real(config, options)

    monkeypatch.setattr(room, "attempted", counted)
    return seen


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_broken_set_up_is_named_and_the_others_may_begin(tmp_path: Path, told: Console) -> None:
    preflight([candidate(SOUND), candidate(BROKEN)], tmp_path, "tell", others_run=False, apart=False, console=told)
    first, last = text(told).splitlines()
    assert first.startswith("preflight: dataset.shots=1000 cannot run: dataset.shots=1000, but class")
    assert last.startswith("preflight: 2 set-ups tried in ")
    assert last.endswith(": 1 cannot run")


def test_only_what_is_new_or_has_failed_is_tried_again(tmp_path: Path, told: Console, tried: list[int]) -> None:
    for more in ((), ("dataset.shots=3",)):
        every = [candidate(shots) for shots in (SOUND, BROKEN, *more)]
        preflight(every, tmp_path, "tell", others_run=False, apart=False, console=told)
    assert tried == [2, 1000, 1000, 3]
    kept = json.loads((tmp_path / "preflight.json").read_text())
    assert {each["label"]: each["failure"] is None for each in kept.values()} == {
        SOUND: True,
        BROKEN: False,
        "dataset.shots=3": True,
    }


def test_nothing_is_said_where_nothing_is_tried(tmp_path: Path, told: Console, tried: list[int]) -> None:
    for _ in range(2):
        preflight([candidate(SOUND)], tmp_path, "tell", others_run=False, apart=False, console=told)
    assert tried == [2]
    assert len(text(told).splitlines()) == 1
    assert "1 set-up tried in" in text(told)


def test_a_process_that_joins_takes_over_what_the_first_finds(tmp_path: Path, told: Console, tried: list[int]) -> None:
    joins = threading.Thread(
        target=preflight,
        args=([candidate(SOUND), candidate(BROKEN)], tmp_path, "tell"),
        kwargs={"others_run": False, "apart": False, "console": told},
    )
    with lock(tmp_path / ".preflight.lock"):  # as the first process holds it
        joins.start()
        while not joins.is_alive():
            time.sleep(0.01)
        time.sleep(0.2)
        found = {
            each.key: {"label": each.label, "estimate": None, "failure": failure, "at": time.time()}
            for each, failure in ((candidate(SOUND), None), (candidate(BROKEN), "too few images"))
        }
        write_json(tmp_path / "preflight.json", found)
    joins.join(timeout=60)
    assert tried == []
    assert text(told) == "preflight: dataset.shots=1000 cannot run: too few images\n"


@pytest.mark.parametrize(
    ("shots", "policy", "others_run", "refused"),
    [
        ((SOUND, BROKEN), "stop", False, "search.preflight=stop, and 1 of the 2 set-ups"),
        ((BROKEN,), "tell", False, "no run of this sweep can begin; dataset.shots=1000: dataset.shots=1000, but"),
        ((BROKEN,), "tell", True, None),
        ((SOUND,), "stop", False, None),
    ],
)
def test_what_stops_a_sweep(
    shots: tuple[str, ...], policy: str, others_run: bool, refused: str | None, tmp_path: Path, told: Console
) -> None:
    def check() -> None:
        preflight([*map(candidate, shots)], tmp_path, policy, others_run=others_run, apart=False, console=told)

    if refused is None:
        check()
    else:
        with pytest.raises(ConfigError, match=refused):
            check()


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"a": {}}'])
def test_a_torn_file_costs_no_more_than_trying_again(torn: str, tmp_path: Path, told: Console, tried: list[int]) -> None:
    (tmp_path / "preflight.json").write_text(torn)
    preflight([candidate(SOUND)], tmp_path, "tell", others_run=False, apart=False, console=told)
    assert tried == [2]


def test_a_set_up_that_kills_its_process_is_told_and_the_next_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text("import os, signal\ndef net(num_classes):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    deadly = candidate(SOUND, "model=custom", "model._target_=deadly.net", "model.weights=null")
    found: list[Callable] = []
    with trying(apart=True) as attempt:
        found = [attempt(deadly.config), attempt(candidate(SOUND).config)]
    assert found[0] == "the process that tried it was killed, most likely for want of memory"
    assert found[1].steps == 3  # 20 images, 8 in a step


def test_a_killed_sweep_leaves_no_process_behind_that_tried_for_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def net(num_classes):\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    time.sleep(3600)\n"
    )
    (tmp_path / "tries.py").write_text(
        "import sys\n"
        "from fourfold.compose import compose\n"
        "from fourfold.study.preflight import trying\n"
        "if __name__ == '__main__':\n"
        "    with trying(apart=True) as attempt:\n"
        "        attempt(compose(sys.argv[1:]))\n"
    )
    words = [*TINY, SOUND, "model=custom", "model._target_=slow.net", "model.weights=null"]
    tries = subprocess.Popen([sys.executable, "tries.py", *words], cwd=tmp_path)
    told = tmp_path / "pid"
    try:
        while not (told.exists() and told.read_text()):
            assert tries.poll() is None
            time.sleep(0.05)
        tries.kill()
    finally:
        tries.wait()
    pid = int(told.read_text())
    deadline = time.monotonic() + 60
    while lease._runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = lease._runs(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left
