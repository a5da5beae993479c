"""What asks a process to stop is heard once, granted when all is saved, and then reaches whoever handled it before."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from fourfold.interrupts import BATCH, deferring, like_ctrl_c, listening


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *BATCH)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def heard(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """A handler as submitit sets one: it notes the signal and ends the process."""
    numbers: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        numbers.append(number)
        sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, handler)
    yield numbers
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("number", [signal.SIGINT, *BATCH])
def test_every_one_of_them_is_a_wish(number: int) -> None:
    with listening() as wish:
        assert not wish()
        os.kill(os.getpid(), number)
        assert wish()


def test_another_handler_has_the_signal_after_the_run_has_saved(heard: list[int]) -> None:
    heard_before_saving = None

    def job() -> None:
        nonlocal heard_before_saving
        with deferring(), listening() as wish:
            signal.raise_signal(signal.SIGTERM)  # which Slurm may send before
            signal.raise_signal(signal.SIGUSR2)
            assert wish()
            heard_before_saving = [*heard]
            raise KeyboardInterrupt("stopped and saved")

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as submitit does
    with pytest.raises(SystemExit):
        job()
    signal.signal(signal.SIGTERM, before)
    assert heard_before_saving == []
    assert heard == [signal.SIGUSR2]


def test_the_same_signal_once_more_acts_at_once(heard: list[int]) -> None:
    with listening() as wish:
        signal.raise_signal(signal.SIGUSR2)
        assert wish()
        assert heard == []
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGUSR2)
    assert heard == [signal.SIGUSR2]


def test_a_run_that_ended_before_it_looked_does_not_swallow_the_signal() -> None:
    with pytest.raises(KeyboardInterrupt), like_ctrl_c(), deferring(), listening():
        signal.raise_signal(signal.SIGUSR1)


def test_where_the_run_stands_is_not_lost_on_the_way() -> None:
    def run() -> None:
        with like_ctrl_c(), deferring(), listening():
            signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt("stopped and saved at epoch 3")

    with pytest.raises(KeyboardInterrupt, match="epoch 3"):
        run()


@pytest.mark.parametrize("number", [signal.SIGINT, *BATCH])
def test_between_two_runs_a_signal_ends_the_command_with_the_code_of_an_interrupt(number: int) -> None:
    code = f"""
import os, sys, time
from fourfold import cli
def waits(args):
    os.kill(os.getpid(), {int(number)})
    time.sleep(60)
cli._dispatch = waits
sys.exit(cli.command([]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 130
    assert ended.stderr == "fourfold: interrupted: the same command goes on\n"
