"""Where a study's data lie is measured once, after the runs, and neither a kill nor a failure costs what is there."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fourfold import cli, data, measuring, place, report, survey
from fourfold.compose import compose, recorded
from fourfold.files import read_json
from fourfold.placement import FILE
from fourfold.study.quadrants import read_study
from report.test_map import write_placements
from study.synthetic import write_plausible, write_run
from test_auto import TINY, run
from test_place import measured, weights

STRATEGIES = "freeze=classifier_only,full"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of two strategies and two sizes, on the network whose lift is known."""
    monkeypatch.setattr(sys, "argv", ["fourfold"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    sizes = [word for word in TINY if not word.startswith("dataset.shots")]
    return ["-m", *sizes, weights(tmp_path, 1.0), STRATEGIES, "dataset.shots=8,20", f"paths.outputs={tmp_path / 'out'}",
            "study=s", "search.preflight=off"]  # fmt: skip


def lifts(folder: Path) -> dict[float, float | None]:
    return {each.placement.size.per_class: each.placement.lift.value for each in read_study(folder).places if each.placement}


def test_a_sweep_ends_with_it_and_does_not_repeat_it(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*words, "search.timeout=1h")
    folder = tmp_path / "out/s"
    alone = {size: measured(compose([*words[1:-5], f"dataset.shots={size}", words[-6]])).lift.value for size in (8, 20)}
    assert lifts(folder) == alone
    assert "measuring where 2 data sets lie" in capsys.readouterr().err
    monkeypatch.setattr(measuring, "measure", lambda *given: pytest.fail("it was measured again"))
    run(*words)
    run("place", str(folder))
    assert "similar · small" in capsys.readouterr().out
    assert 'id="map"' in (folder / "report.html").read_text(encoding="utf-8")


def test_it_can_be_left_out_and_made_good_with_the_test_split_sealed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*words, "search.map=false")
    folder = tmp_path / "out/s"
    survey.finish(folder, until=time.time())
    assert f"the time is up: `fourfold place {folder}` measures what is left" in capsys.readouterr().err
    assert not (folder / FILE).exists()
    assert f"fourfold place {folder}" in report.build(folder).read_text(encoding="utf-8")
    monkeypatch.setattr(data.SealedSplit, "open", lambda split: pytest.fail("the test split was opened"))
    run("place", str(folder))
    assert len(lifts(folder)) == 2


def test_a_kill_while_measuring_loses_nothing(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*words, "search.map=false")
    folder, whole, asked = tmp_path / "out/s", measuring.measure, []

    def interrupted(config: Any, strategies: Any) -> Any:
        asked.append(config.dataset.shots)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(config, strategies)

    monkeypatch.setattr(measuring, "measure", interrupted)
    assert cli.command(["place", str(folder)]) == cli.INTERRUPTED
    assert len(lifts(folder)) == 1
    run("place", str(folder))
    assert asked == [asked[0], asked[1], asked[1]]  # the second one alone was left
    assert len(lifts(folder)) == 2


def test_what_cannot_be_placed_is_told_and_fails_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: Any, strategies: Any) -> Any:
        raise RuntimeError("the images are gone")

    monkeypatch.setattr(measuring, "measure", broken)
    run(*words)
    assert "has no place on the map: RuntimeError: the images are gone" in capsys.readouterr().err
    assert (tmp_path / "out/s/report.html").exists()


def test_nothing_is_measured_where_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "placed", lambda *given, **more: pytest.fail("it was measured"))
    write_run(tmp_path / "one strategy")
    write_run(tmp_path / "scratch", strategy="from_scratch")
    for strategy in ("full", "classifier_only"):
        write_run(tmp_path / "smoke", strategy=strategy, extra={"debug": {"name": "smoke"}})
    for folder in tmp_path.iterdir():
        survey.finish(folder)


def test_a_record_of_an_older_version_has_todays_defaults_for_what_it_did_not_know(tmp_path: Path) -> None:
    plain = read_json(write_run(tmp_path) / "result.json")["config"]
    config = recorded(plain | {"gone": {"key": 1}})
    assert (config.dataset.name, config.optimizer.lr) == ("digits", 1e-3)
    assert config.search == compose([]).search


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    study = write_plausible(tmp_path / "study", seeds=2, rates=(1e-3,), places=1)
    write_placements(study)
    code = f"import sys; from fourfold import cli; print(cli.command(['report', {str(study)!r}]), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "0 False"
    assert 'id="map"' in (study / "report.html").read_text(encoding="utf-8")
