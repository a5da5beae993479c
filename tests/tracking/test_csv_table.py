import csv
from pathlib import Path

import pytest

from fourfold.config import RunConfig
from fourfold.tracking import open_tracker


@pytest.fixture
def table(config: RunConfig) -> RunConfig:
    config.logger.csv.enabled = True
    return config


def told(config: RunConfig, folder: Path, *rows: dict[str, float]) -> list[dict[str, str]]:
    """What metrics.csv holds after one start of the run has told these rows."""
    with open_tracker(config, folder, run_id="abcd") as tracker:
        for row in rows:
            tracker.log(row)
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_epoch(table: RunConfig, folder: Path) -> None:
    told(table, folder, {"epoch": 0, "train/loss": 0.5}, {"epoch": 1, "train/loss": 0.1 + 0.2})
    assert (folder / "metrics.csv").read_text() == "epoch,train/loss\n0,0.5\n1,0.30000000000000004\n"


def test_the_header_grows_and_the_columns_stay_aligned(table: RunConfig, folder: Path) -> None:
    rows = told(table, folder, {"epoch": 0, "a": 1}, {"epoch": 1, "a": 2, "b": 3}, {"epoch": 2, "b": 4})
    assert rows == [
        {"epoch": "0", "a": "1", "b": ""},
        {"epoch": "1", "a": "2", "b": "3"},
        {"epoch": "2", "a": "", "b": "4"},
    ]


def test_a_resumed_run_doubles_no_epoch(table: RunConfig, folder: Path) -> None:
    told(table, folder, {"epoch": 0, "a": 1}, {"epoch": 1, "a": 2})
    rows = told(table, folder, {"epoch": 1, "a": 3}, {"epoch": 2, "a": 4})
    assert [(row["epoch"], row["a"]) for row in rows] == [("0", "1"), ("1", "3"), ("2", "4")]


def test_a_raising_run_leaves_its_rows(table: RunConfig, folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_tracker(table, folder, run_id="abcd") as tracker:  # noqa: PT012
        tracker.log({"epoch": 0, "a": 1})
        raise ZeroDivisionError
    assert (folder / "metrics.csv").read_text() == "epoch,a\n0,1\n"
