"""A sweep's display counts what the trials say, says each ended run once, and never draws where nobody could see it."""

from typing import Any

import pytest
from rich.console import Console

from fourfold.study import live
from fourfold.study.live import Pace, SweepDisplay
from fourfold.study.trials import TrialView


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


def view(number: int, state: Any, *, cell: str = "small full", value: float | None = None, **given: Any) -> TrialView:
    overrides = ("quadrant=small", f"freeze={cell.split()[-1]}", f"optimizer.lr=0.{number + 1}", "seed=0")
    fields: dict[str, Any] = {"overrides": overrides, "reason": None, "seconds": None, "epochs": None, "folder": None}
    return TrialView(cell=cell, number=number, state=state, value=value, retries=0, **{**fields, **given})


def piped() -> Console:
    return Console(record=True, width=100, force_terminal=False, quiet=False)


def terminal(height: int = 30) -> Console:
    return Console(record=True, width=80, height=height, force_terminal=True, color_system=None)


def drawn(display: SweepDisplay, height: int = 30) -> str:
    console = terminal(height)
    console.print(display._table())
    return console.export_text()


def test_piped_each_ended_run_is_one_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    first = [view(0, "running"), view(1, "waiting")]
    second = [view(0, "done", value=0.93), view(1, "failed", reason="OutOfMemoryError: CUDA\nof 8 GB"), view(2, "running")]
    with SweepDisplay(144, "val/acc", live=True) as display:
        for views in (first, second, second):
            display.update(views)
            clock.now += 1
    assert capsys.readouterr().out.splitlines() == [
        "[  1/144] done   small full lr=0.1 s0  val/acc 0.93",
        "[  2/144] failed small full lr=0.2 s0  OutOfMemoryError: CUDA of 8 GB",
    ]


def test_what_ended_before_is_one_line_together(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepDisplay(9, "val/acc", live=False) as display:
        display.update([view(0, "done", value=0.5), view(1, "done", value=0.6), view(2, "running")])
    assert capsys.readouterr().out == "[2/9] ended before\n"


def test_updates_between_two_looks_are_kept_for_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with SweepDisplay(2, "val/acc", live=False) as display:
        display.update([view(0, "running")])
        assert not display.due
        display.update([view(0, "done", value=0.5)])
        assert capsys.readouterr().out == ""
    assert "[1/2] done" in capsys.readouterr().out


def test_nothing_to_show_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepDisplay(0, "val/acc", live=True) as display:
        display.update([view(0, "done", value=0.5)])
        assert not display.due
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("metric", "best"), [("val/acc", "0.9"), ("val/loss", "0.2")])
def test_the_table_counts_each_cell_and_knows_the_better_way(metric: str, best: str, clock: Clock) -> None:
    display = SweepDisplay(20, metric, live=True, console=terminal())
    display.update([
        view(0, "done", value=0.2), view(1, "done", value=0.9), view(2, "pruned"), view(3, "running"),
        view(0, "failed", cell="small bias"), view(1, "interrupted", cell="small bias"), view(2, "waiting", cell="small bias"),
    ])  # fmt: skip
    head, _, full, bias, *_ = drawn(display).splitlines()
    assert head.split() == ["cell", "done", "running", "pruned", "failed", "best", "at"]
    assert full.split()[:6] == ["small", "full", "2", "1", "1", best]
    assert bias.split() == ["small", "bias", "1"]
    assert "4/20" in drawn(display)


def test_the_points_of_a_grid_share_a_row(clock: Clock) -> None:
    display = SweepDisplay(3, "val/acc", live=True, console=terminal())
    display.update([view(i, "done", value=0.5, cell=f"point{i} full") for i in range(3)])
    assert drawn(display).splitlines()[2].split()[:3] == ["small", "full", "3"]


def test_a_low_terminal_shows_the_cells_that_run(clock: Clock) -> None:
    cells = [f"c{i} x" for i in range(40)]
    views = [view(n, "done" if i < 30 else "running", value=0.5, cell=cell) for i, cell in enumerate(cells) for n in (0, 1)]
    display = SweepDisplay(80, "val/acc", live=True, console=terminal(16))
    display.update(views)
    lines = drawn(display, 16).splitlines()
    assert len(lines) < 16
    assert [line.split()[0] for line in lines[2:12]] == [f"c{i}" for i in range(30, 40)]
    assert "and 30 more cells" in lines[12]


def test_above_the_table_stand_the_failures_alone(clock: Clock) -> None:
    console = terminal()
    with SweepDisplay(2, "val/acc", live=True, console=console) as display:
        display.update([view(0, "running"), view(1, "running")])
        clock.now += 1
        display.update([view(0, "done", value=0.5), view(1, "failed", reason="boom")])
    told = console.export_text()
    assert "failed small full lr=0.2 s0  boom" in told
    assert "] done" not in told


def test_time_left_counts_only_what_this_sitting_did(clock: Clock) -> None:
    pace = Pace()
    before = [view(i, "done", value=0.5, seconds=30.0) for i in range(4)]
    pace.see([*before, view(4, "running"), view(5, "running")])
    assert pace.left([*before, view(4, "running"), view(5, "running")], 10) == 30 * 6 / 2
    clock.now = 50.0
    assert pace.left([*before, view(4, "done", value=0.5)], 10) == 50.0 * 5
    assert Pace().left([], 10) is None
