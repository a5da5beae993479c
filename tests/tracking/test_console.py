import io
import itertools
import multiprocessing
import sys

import pytest
import torch
from rich.console import Console

from fourfold.tracking import console
from fourfold.tracking.console import Display, clock, told

ROW = {
    "epoch": 0,
    "step": 4,
    "lr": 0.001,
    "train/loss": 0.51234567,
    "val/loss": 0.6,
    "val/acc": 0.875,
    "val/ece": 0.1,
    "seconds": 1,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(console, "Console", lambda: Console(file=screen, force_terminal=True, width=120))
    return screen


def run(display: Display, epochs: range, steps: int = 4) -> None:
    with display:
        for epoch in epochs:
            display.epoch(epoch, steps)
            for _ in range(steps):
                display.step(torch.tensor(0.75), 0.001)
            display.row({**ROW, "epoch": epoch})


def test_piped_output_is_one_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    run(Display(True, 3, "glyphs"), range(3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "glyphs  epoch 1/3  lr 0.001  train/loss 0.5123  val/loss 0.6  val/acc 0.875  left 0:00"


def test_a_terminal_gets_a_bar_and_the_lines(terminal: Terminal) -> None:
    run(Display(True, 3, "glyphs"), range(3))
    assert "step 1/4  loss 0.75  lr 0.001" in terminal.getvalue()
    assert "epoch 3/3" in terminal.getvalue()
    assert terminal.getvalue().count("val/acc 0.875") == 3


def test_a_worker_process_draws_no_bar_on_the_shared_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", dict(multiprocessing.current_process()._config))
    monkeypatch.setattr(multiprocessing.current_process(), "name", "LokyProcess-1")
    run(Display(True, 3, "glyphs"), range(3))
    assert terminal.getvalue() == ""
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_disabled_shows_nothing(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    run(Display(False, 3, "glyphs"), range(3))
    assert terminal.getvalue() + capsys.readouterr().out == ""


def test_the_loss_is_read_a_few_times_a_second_only(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(console.time, "monotonic", lambda: next(ticks) / 1000)
    reads = 0

    def loss() -> float:
        nonlocal reads
        reads += 1
        return 0.5

    with Display(True, 1, "glyphs") as display:
        display.epoch(0, 20_000)
        began = next(ticks)
        for _ in range(20_000):
            display.step(loss, 0.001)
        seconds = (next(ticks) - began) / 1000
    assert 20 < reads <= seconds / console.REFRESH + 1


def test_a_piped_run_never_reads_the_loss() -> None:
    def loss() -> float:
        raise AssertionError("this would wait for the device")

    with Display(True, 1, "glyphs") as display:
        display.epoch(0, 1)
        display.step(loss, 0.001)


def test_time_left_counts_only_the_epochs_of_this_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    display = Display(True, 10, "glyphs")
    display.epoch(4, 1)
    display.row({**ROW, "epoch": 4})
    assert capsys.readouterr().out.endswith("left 0:50\n")


def test_a_regression_shows_its_own_metric_and_an_epoch_without_validation_none() -> None:
    assert told({"epoch": 0, "lr": 0.1, "train/loss": 2, "val/mae": 0.25, "val/r2": 0.5}) == [
        "lr 0.1",
        "train/loss 2",
        "val/mae 0.25",
    ]
    assert told({"epoch": 0, "lr": 0.1, "train/loss": 2, "val/loss": None}) == ["lr 0.1", "train/loss 2"]


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_the_display_writes_to_the_standard_output_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = io.StringIO()
    display = Display(True, 1, "glyphs")
    monkeypatch.setattr(sys, "stdout", replaced)
    run(display, range(1))
    assert replaced.getvalue().count("\n") == 1
