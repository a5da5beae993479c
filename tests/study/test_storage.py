"""A kill stalls nobody and loses nothing; half a line is cut off; several processes open a new study; no password is shown."""

import pickle
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from fourfold.config import ConfigError
from fourfold.study import storage
from fourfold.study.storage import FileLock, open_storage, persevere, repair
from study import writer

STALL = 10.0  # seconds on a busy machine; Optuna's own lock would take 30


def plain(path: Path) -> JournalStorage:
    """The journal as Optuna alone, or optuna-dashboard, opens it."""
    return JournalStorage(JournalFileBackend(str(path)))


def seconds_of(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def test_killed_writers_neither_stall_the_next_nor_lose_what_they_told(tmp_path: Path) -> None:
    ours = open_storage("journal", tmp_path)
    logs = [tmp_path / f"{i}.log" for i in range(6)]
    writers = [writer.start("journal", tmp_path, 10**6, log) for log in logs]
    writer.begin(writers, logs)
    while not all(writer.told(log) for log in logs):
        time.sleep(0.01)
    stalls = []
    for victim in writers:
        time.sleep(random.uniform(0, 0.05))
        victim.kill()
        stalls.append(seconds_of(lambda: writer.do(ours)))
    for victim in writers:
        victim.wait()
    values = writer.completed(open_storage("journal", tmp_path))
    told = [number for log in logs for number in writer.told(log)]
    assert len(set(told)) == len(told) > len(writers)
    assert {number: values.get(number) for number in told} == {number: number for number in told}
    assert max(stalls) < STALL


@pytest.mark.parametrize("optunas_own", [False, True])
def test_only_optunas_own_lock_outlives_its_holder(tmp_path: Path, optunas_own: bool) -> None:
    journal = tmp_path / "study.journal"
    make = "from optuna.storages.journal import JournalFileSymlinkLock as Lock; path = sys.argv[1]"
    if not optunas_own:
        make = "from fourfold.study.storage import FileLock as Lock; from pathlib import Path; path = Path(sys.argv[1])"
    code = f"import sys, time; {make}; Lock(path).acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(journal)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    if optunas_own:
        assert Path(JournalFileSymlinkLock(str(journal))._lock_file).is_symlink()  # what the next writer would wait for
    else:
        assert seconds_of(lambda: writer.do(open_storage("journal", tmp_path))) < STALL


def test_a_lock_keeps_others_out_and_its_pickled_copy_holds_nothing(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "study.journal")
    lock.acquire()
    (tmp_path / "lock.pickle").write_bytes(pickle.dumps(lock))
    code = (
        "import pickle, sys; from pathlib import Path; lock = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "print('asks', flush=True); lock.acquire(); lock.release()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock.pickle")], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "asks\n"
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=0.3)
    lock.release()
    assert other.wait(timeout=600) == 0


@pytest.mark.parametrize("lost_bytes", [1, 20])
def test_half_a_last_line_is_cut_off_where_optuna_alone_never_reads_again(tmp_path: Path, lost_bytes: int) -> None:
    journal = tmp_path / "study.journal"
    for _ in range(3):
        writer.do(open_storage("journal", tmp_path))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-lost_bytes])
    control = shutil.copy(journal, tmp_path / "control.journal")
    assert writer.do(open_storage("journal", tmp_path)) == 3
    assert journal.read_bytes().startswith(whole[: whole.rstrip().rfind(b"\n") + 1])
    assert writer.completed(open_storage("journal", tmp_path)) == {0: 0, 1: 1, 3: 3}  # the telling of 2 was torn
    for refused in (lambda: writer.do(plain(control)), lambda: plain(control)):
        with pytest.raises(ValueError, match=r"Extra data|delimiter|Expecting|Invalid"):
            refused()


def test_those_who_are_at_it_go_on_when_one_is_killed_inside_a_line(tmp_path: Path) -> None:
    one, two = open_storage("journal", tmp_path), open_storage("journal", tmp_path)
    writer.do(one)
    assert writer.completed(two) == {0: 0}
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"')
    assert writer.completed(two) == {0: 0}
    writer.do(one)
    writer.do(two)
    everything = {0: 0, 1: 1, 2: 2}
    for reader in (one, two, open_storage("journal", tmp_path), plain(tmp_path / "study.journal")):
        assert writer.completed(reader) == everything


@pytest.mark.parametrize(
    ("content", "kept"),
    [(b"", b""), (b"{}\n", b"{}\n"), (b"{}\n[]\n", b"{}\n[]\n"), (b"{", b""), (b"{}\n" + b"x" * 3_000_000, b"{}\n")],
)
def test_repair_cuts_to_the_last_whole_line_and_leaves_a_whole_file_alone(tmp_path: Path, content: bytes, kept: bytes) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    before = path.stat().st_mtime_ns
    with path.open("ab+") as file:
        assert repair(file, path) == len(content) - len(kept)
    assert path.read_bytes() == kept
    assert (path.stat().st_mtime_ns == before) == (content == kept)


def test_repair_leaves_a_line_that_another_program_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(b'{}\n{"op_code":')

    def meanwhile(seconds: float) -> None:
        with path.open("ab") as other:
            other.write(b"2}" if path.read_bytes().endswith(b":") else b"\n")

    monkeypatch.setattr(storage.time, "sleep", meanwhile)
    with path.open("ab+") as file:
        assert repair(file, path) == 0
    assert path.read_bytes() == b'{}\n{"op_code":2}\n'


def test_optuna_alone_may_read_and_write_beside(tmp_path: Path) -> None:
    """As optuna-dashboard does; it must find no lock of ours that it would wait for and then remove."""
    ours, other = open_storage("journal", tmp_path), plain(tmp_path / "study.journal")
    assert seconds_of(lambda: [writer.do(either) for either in (ours, other, ours, other)]) < STALL
    assert writer.completed(ours) == writer.completed(other) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_four_processes_begin_a_new_study_at_once(tmp_path: Path, kind: str) -> None:
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    writers = [writer.start(kind, tmp_path / "study", 3, log) for log in logs]
    writer.begin(writers, logs)
    assert [each.wait(timeout=600) for each in writers] == [0, 0, 0, 0]
    assert writer.completed(open_storage(kind, tmp_path / "study")) == {number: number for number in range(12)}


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_pickled_storage_works_in_another_process(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a {strange} name"
    ours = open_storage(kind, folder)
    writer.do(ours)
    (tmp_path / "storage.pickle").write_bytes(pickle.dumps(ours))
    code = "import pickle, sys; from pathlib import Path; writer.do(pickle.loads(Path(sys.argv[1]).read_bytes()))"
    command = [sys.executable, "-c", f"import writer; {code}", str(tmp_path / "storage.pickle")]
    subprocess.run(command, cwd=Path(writer.__file__).parent, check=True)
    assert writer.completed(ours) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("jurnal", "hydra.sweeper.storage=jurnal is neither .* did you mean journal\\?: give one of them"),
        ("me:s3cr3t@host/nights", "storage=\\.\\.\\. is neither"),
        ("sqlite:////tmp/s3cr3t.db", "storage=sqlite://\\.\\.\\. is neither .* did you mean sqlite\\?"),
        ("postgres://me:s3cr3t@host/nights", "storage=postgres://\\.\\.\\. is neither .* did you mean postgresql\\?"),
        ("postgresql://me:s3cr3t@host:port/nights", "cannot be read as a URL: write postgresql://USER"),
        ("postgresql+psycopgg://me:s3cr3t@host/nights", "cannot be read as a URL"),
        ("mysql+cymysql://me:s3cr3t@host/nights", "needs a driver .*: pip install the driver that it names"),
    ],
)
def test_what_is_no_storage_is_refused_in_a_sentence_without_the_password(tmp_path: Path, kind: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        open_storage(kind, tmp_path)
    assert "s3cr3t" not in "".join(traceback.format_exception(refused.value))


def test_a_database_that_is_away_is_told_in_a_sentence_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql://me:s3cr3t@127.0.0.1:1/nights"
    monkeypatch.setattr(storage, "OPENING_SECONDS", 0.2)
    with pytest.raises(ConfigError, match=r"refused.*: start the database, or correct the setting") as refused:
        open_storage(url, tmp_path)
    assert "s3cr3t" not in "".join(traceback.format_exception(refused.value))


def test_persevering_ends_with_success_with_patience_or_with_any_other_error() -> None:
    def failing(times: int, error: Exception) -> Callable[[], int]:
        left = iter(range(times))

        def call() -> int:
            calls.append(1)
            if next(left, None) is not None:
                raise error
            return 7

        return call

    calls: list[int] = []
    assert persevere(failing(3, StorageInternalError("away"))) == 7
    assert len(calls) == 4
    with pytest.raises(StorageInternalError):
        persevere(failing(10**6, StorageInternalError("away")), seconds=0.2)
    calls.clear()
    with pytest.raises(KeyError):
        persevere(failing(1, KeyError("study")))
    assert len(calls) == 1
