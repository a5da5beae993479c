import functools
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from fourfold import tracking
from fourfold.config import RunConfig
from fourfold.tracking import open_tracker
from fourfold.tracking.tracker import Tracker, Trackers


def test_without_trackers_nothing_is_written_and_nothing_asked(config: RunConfig, folder: Path) -> None:
    with open_tracker(config, folder, run_id="abcd") as tracker:
        tracker.watch(nn.Linear(1, 1))
        tracker.log({"epoch": 0})
        tracker.summary({"test/acc": 1.0})
        tracker.log_model(folder / "best.pt")
        assert not tracker.stop_requested
        assert tracker.hint is None
    assert list(folder.parent.rglob("*")) == [folder]


@pytest.mark.usefixtures("wandb_session")
def test_all_of_them_hear_the_same(config: RunConfig, folder: Path) -> None:
    config.logger.wandb.enabled = config.logger.tensorboard.enabled = config.logger.csv.enabled = True
    with open_tracker(config, folder, run_id="abcd") as tracker:
        tracker.log({"epoch": 0, "val/acc": 0.5})
    assert (folder / "metrics.csv").exists()
    assert list(folder.glob("events.out.tfevents.*"))
    assert list((folder.parent / "wandb").glob("offline-run-*"))


def test_a_wandb_that_cannot_be_imported_ends_no_run_and_is_told_once(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(tracking, "_wandb_is_there", functools.cache(tracking._wandb_is_there.__wrapped__))
    config.logger.wandb.enabled = config.logger.csv.enabled = True
    for run_id in ("abcd", "efgh"):
        with open_tracker(config, folder, run_id=run_id) as tracker:
            tracker.log({"epoch": 0, "val/acc": 0.5})
    assert (folder / "metrics.csv").exists()
    (told,) = (each.getMessage() for each in caplog.records)
    assert "W&B cannot be imported (ModuleNotFoundError" in told
    assert "logger=none" in told


def test_an_exception_closes_every_tracker() -> None:
    closed: list[type[BaseException] | None] = []

    class Noting(Tracker):
        def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
            closed.append(kind)

    with pytest.raises(ZeroDivisionError), Trackers([Noting(), Noting()]):
        raise ZeroDivisionError
    assert closed == [ZeroDivisionError, ZeroDivisionError]


def test_a_run_without_wandb_does_not_import_it() -> None:
    code = (
        "import fourfold.tracking, fourfold.tracking.console, sys; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_that_a_run_is_made_of_comes_without_wandb_and_leaves_it_to_who_wants_it() -> None:
    """timm imports it, if it can, and torchmetrics imports scipy's signals."""
    code = (
        "import fourfold.run, sys; there = {'timm', 'torchmetrics', 'wandb', 'scipy.signal'} & set(sys.modules); "
        "assert there == {'timm', 'torchmetrics'}, there; import wandb, scipy.signal; wandb.init, scipy.signal.butter"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
