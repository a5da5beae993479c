"""A study on a real PostgreSQL: several processes begin it at once, and a crash of the server in the middle ends nothing."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import optuna
import pytest

from fourfold import cli
from fourfold.study.ledger import view
from fourfold.study.storage import existing, open_storage
from study import writer

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.postgres
SCRIPT = Path(__file__).parents[2] / "scripts" / "postgres.sh"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The script's process and the URL of the server that it keeps."""
    process = subprocess.Popen([str(SCRIPT), "7200"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()
    if not url and "initdb is missing" in (why := process.stderr.read()):
        pytest.skip(why.strip())
    assert url, process.stderr.read()
    yield process, url
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 0


@pytest.fixture
def empty_database(server: tuple[subprocess.Popen[str], str]) -> str:
    _, url = server
    name = f"study_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.rpartition("/")[0] + "/" + name


def test_four_processes_begin_on_an_empty_database_at_once(empty_database: str, tmp_path: Path) -> None:
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    writers = [writer.start(empty_database, tmp_path, 3, log) for log in logs]
    writer.begin(writers, logs)
    assert [each.wait(timeout=600) for each in writers] == [0, 0, 0, 0]
    assert writer.completed(open_storage(empty_database, tmp_path)) == {number: number for number in range(12)}


def test_looking_for_a_study_makes_no_table(empty_database: str, tmp_path: Path) -> None:
    assert existing(empty_database, tmp_path) is None
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    open_storage(empty_database, tmp_path)
    assert existing(empty_database, tmp_path) is not None


def test_a_crash_of_the_server_ends_no_writer_and_loses_nothing_told(
    server: tuple[subprocess.Popen[str], str], empty_database: str, tmp_path: Path
) -> None:
    process, _ = server
    logs = [tmp_path / f"{i}.log" for i in range(3)]
    storage = open_storage(empty_database, tmp_path)
    writers = [writer.start(empty_database, tmp_path, 15, log) for log in logs]
    writer.begin(writers, logs)
    while not all(writer.told(log) for log in logs):
        time.sleep(0.01)
    before = [len(writer.told(log)) for log in logs]
    assert max(before) < 15  # or the crash would come too late
    process.send_signal(signal.SIGUSR1)
    assert [each.wait(timeout=600) for each in writers] == [0, 0, 0]
    told = [number for log in logs for number in writer.told(log)]
    assert len(set(told)) == len(told) == 3 * 15
    values = writer.completed(storage)  # opened before the crash: its connections died, too
    assert {number: values.get(number) for number in told} == {number: number for number in told}


def test_a_killed_writer_leaves_the_database_to_the_others(empty_database: str, tmp_path: Path) -> None:
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    writers = [writer.start(empty_database, tmp_path, trials, log) for trials, log in zip((10**6, 10), logs, strict=True)]
    writer.begin(writers, logs)
    while not all(writer.told(log) for log in logs):
        time.sleep(0.01)
    writers[0].kill()
    assert writers[1].wait(timeout=600) == 0
    told = [number for log in logs for number in writer.told(log)]
    values = writer.completed(open_storage(empty_database, tmp_path))
    assert {number: values.get(number) for number in told} == {number: number for number in told}
    writers[0].wait()


def test_a_host_that_vanishes_is_noticed_and_the_url_has_the_last_word(empty_database: str, tmp_path: Path) -> None:
    storage = open_storage(f"{empty_database}?keepalives_idle=7", tmp_path)
    with storage.engine.connect() as connection:  # type: ignore[attr-defined]
        asked = connection.connection.dbapi_connection.info.get_parameters()
    assert (asked["keepalives_idle"], asked["tcp_user_timeout"]) == ("7", "60000")


def test_status_finds_the_trials_of_one_study_in_a_database_that_holds_two(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUDY_URL", empty_database)
    for study, seeds in (("mine", "0,1"), ("another", "0,1,2")):
        words = [
            "hydra.sweeper.storage='${oc.env:STUDY_URL}'", f"study={study}", f"seed={seeds}",
            "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=2", "dataset.val_size=10",
            "dataset.test_size=10", "model=micro_resnet", "freeze=from_scratch", "trainer.batch_size=10", "trainer.epochs=1",
            "trainer.device=cpu", "trainer.threads=1", "logger=none", f"paths.outputs={tmp_path}",
        ]  # fmt: skip
        subprocess.run([sys.executable, "-m", "fourfold", "-m", *words], check=True, capture_output=True, timeout=600)
    assert len(view(open_storage(empty_database, tmp_path))) == 2 + 3
    for study, done in (("mine", 2), ("another", 3)):
        assert cli.command(["status", str(tmp_path / study)]) == 0
        told = capfd.readouterr()
        assert told.err == ""
        assert f"{study}: {done} done" in told.out
        runs = json.loads((tmp_path / study / "summary.json").read_text())["runs"]
        assert len(runs) == done
    # what only the database knows: a trial that no process has begun
    storage = open_storage(empty_database, tmp_path)
    name = next(each.study_name for each in storage.get_all_studies() if each.study_name.startswith("mine/"))
    optuna.load_study(study_name=name, storage=storage).enqueue_trial({}, user_attrs={"key": "p9"})
    cli.command(["status", str(tmp_path / "mine")])
    assert "1 waiting" in capfd.readouterr().out
    cli.command(["status", str(tmp_path / "another")])
    assert "waiting" not in capfd.readouterr().out
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".yaml", ".json", ".log", ".md")]
    assert written
    assert not [path for path in written if empty_database in path.read_text()]
