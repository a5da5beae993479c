import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

from fourfold.config import ConfigError, RunConfig
from fourfold.tracking import open_tracker


@pytest.fixture
def board(config: RunConfig) -> RunConfig:
    config.logger.name, config.logger.tensorboard.enabled = "tensorboard", True
    return config


def told(config: RunConfig, folder: Path, *rows: dict[str, float], summary: dict[str, float] | None = None) -> EventAccumulator:
    """What TensorBoard reads after one start of the run has told this."""
    with open_tracker(config, folder, run_id="abcd") as tracker:
        for row in rows:
            tracker.log(row)
        if summary is not None:
            tracker.summary(summary)
    return EventAccumulator(str(folder)).Reload()


def curve(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_curves_hold_what_was_told(board: RunConfig, folder: Path) -> None:
    events = told(board, folder, {"epoch": 0, "val/acc": 0.5, "lr": 1.0}, {"epoch": 1, "val/acc": 0.75})
    assert curve(events, "val/acc") == [(0, 0.5), (1, 0.75)]
    assert curve(events, "lr") == [(0, 1.0)]


def test_the_hyperparameters_are_in_the_same_folder(board: RunConfig, folder: Path) -> None:
    board.scheduler.milestones = [0.5, 0.75]
    events = told(board, folder, {"epoch": 0, "val/acc": 0.5}, summary={"best/val_acc": 0.5, "weights": "IMAGENET1K_V1"})
    assert curve(events, "best/val_acc") == [(0, 0.5)]
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    given = parse_session_start_info_plugin_data(content).hparams
    assert given["optimizer.lr"].number_value == 0.25
    assert given["freeze_strategy.name"].string_value == "full"
    assert given["scheduler.milestones"].string_value == "[0.5, 0.75]"
    assert not [name for name in given if name.startswith(("logger", "paths"))]
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_a_resumed_run_doubles_no_epoch(board: RunConfig, folder: Path) -> None:
    told(board, folder, {"epoch": 0, "val/acc": 0.25}, {"epoch": 1, "val/acc": 0.5})
    events = told(board, folder, {"epoch": 1, "val/acc": 0.75}, {"epoch": 2, "val/acc": 1.0}, summary={"test/acc": 0.5})
    assert curve(events, "val/acc") == [(0, 0.25), (1, 0.75), (2, 1.0)]
    assert curve(events, "test/acc") == [(0, 0.5)]


def test_without_tensorboard_the_error_names_the_cure(board: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"logger=tensorboard .* `pip install fourfold\[tensorboard\]`"):
        open_tracker(board, folder, run_id="abcd")
