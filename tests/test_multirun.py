"""Where a study keeps its trials: found again from its folder, and never with a password on the disk."""

from pathlib import Path

import optuna
import pytest

from fourfold import cli, multirun
from fourfold.config import ConfigError
from fourfold.multirun import Database, database_of, refuse_password
from fourfold.study.storage import open_storage

OURS = "hydra_plugins.fourfold_sweeper.sweeper.FourfoldSweeper"
SWEEP = ["freeze=from_scratch", "seed=0,1", "study=mine"]


def study(folder: Path, storage: str, target: str = OURS) -> Path:
    """A folder as a multirun leaves it."""
    folder.mkdir()
    sweeper = f"{{_target_: {target}, storage: '{storage}'}}"
    (folder / "multirun.yaml").write_text(f"study: mine\nhydra:\n  sweeper: {sweeper}\n", encoding="utf-8")
    return folder


SECRET = [
    "postgresql://me:secret@host/db",
    "postgresql+psycopg://me:secr/et@host:5432/db",
    "postgresql://${oc.env:WHO}:secret@host/db",
    "postgresql://host/db?user=me&password=secret",
    "${oc.env:STUDY_URL,'postgresql://me:secret@host/db'}",
]
OPEN = [
    "journal",
    "${oc.env:STUDY_URL}",
    "${oc.env:STUDY_URL,journal}",
    "postgresql://me@host:5432/db",
    "postgresql://${oc.env:WHO}:${oc.env:WORD}@host/db",
    "postgresql://host/db?user=me&password=${oc.env:WORD}",
]


@pytest.mark.parametrize("storage", SECRET)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(storage: str) -> None:
    with pytest.raises(ConfigError, match=r"put the URL into an environment variable") as refusal:
        refuse_password(storage)
    assert "secr" not in str(refusal.value)


@pytest.mark.parametrize("storage", OPEN)
def test_what_comes_from_the_environment_is_no_password_on_the_disk(storage: str) -> None:
    refuse_password(storage)


def test_a_password_is_refused_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = tmp_path / "conf/experiment/mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(f"# @package _global_\nhydra:\n  sweeper:\n    storage: {SECRET[0]}\n", encoding="utf-8")
    literal = f"hydra.sweeper.storage='{SECRET[0]}'"
    for words in (
        ["-m", *SWEEP, literal],
        ["-m", *SWEEP, "--config-dir", str(tmp_path / "conf"), "experiment=mine"],
        [literal],
    ):
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # which a command leaves behind in its process
        assert cli.command(words) == cli.REFUSED
        assert "holds a password" in (said := capfd.readouterr().err)
        assert "secret" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_sweep_whose_database_nobody_has_named_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_URL", raising=False)
    with pytest.raises(ConfigError, match=r"STUDY_URL is not set here: export it"):
        multirun.plan([*SWEEP, "hydra.sweeper.storage='${oc.env:STUDY_URL}'"])


def test_the_database_of_a_study_is_found_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "secret")
    folder = study(tmp_path / "a", "postgresql://me:${oc.env:WORD}@host/db")
    assert database_of(folder) == Database("postgresql://me:secret@host/db", "mine")


def test_a_study_without_a_database_has_none(tmp_path: Path) -> None:
    (tmp_path / "single").mkdir()
    basic = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    for folder in (tmp_path / "single", study(tmp_path / "a", "journal"), study(tmp_path / "b", "x", target=basic)):
        assert database_of(folder) is None


@pytest.mark.parametrize("url", [None, "postgresql://fourfold@127.0.0.1:1/nowhere"])
def test_status_reads_the_folders_where_the_database_cannot_be_reached(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if url is None:
        monkeypatch.delenv("STUDY_URL", raising=False)
    else:
        pytest.importorskip("psycopg")
        monkeypatch.setenv("STUDY_URL", url)
        monkeypatch.setattr("fourfold.study.storage.OPENING_SECONDS", 0.1)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folder = study(tmp_path / "a", "${oc.env:STUDY_URL}")
    assert cli.command(["status", str(folder)]) == 0
    said = capfd.readouterr()
    assert said.err.startswith("fourfold: only the folders were read: hydra.sweeper.storage")
    assert len(said.err.splitlines()) == 1
    assert "No run has begun" in said.out


def test_status_reads_the_journal_of_a_study_whose_environment_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The variable may have said `journal`, and only the trials know why a run was given up."""
    monkeypatch.delenv("STUDY_URL", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    folder = study(tmp_path / "a", "${oc.env:STUDY_URL}")
    trials = optuna.create_study(study_name="a/seed=0#1", storage=open_storage("journal", folder))
    attributes = {"key": "p0", "command": ["seed=0"], "reason": "its process died 3 times"}
    trials.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attributes))
    assert cli.command(["status", str(folder)]) == 0
    assert "its process died 3 times" in capfd.readouterr().out
