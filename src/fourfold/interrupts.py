"""Ctrl-C, SIGTERM and what batch systems send before they end a job, as a wish that is granted when nothing is lost by it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Slurm sends USR1 as scripts/slurm.sh asks it to, and USR2 as submitit does
BATCH = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Wish:
    """Whether the run has been asked to stop."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __call__(self) -> bool:
        return bool(self.signals)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        before = self.before[number]
        signal.signal(number, before)
        outer = getattr(before, "__self__", None)
        if isinstance(outer, Wish):
            outer.note(number, frame)


@contextmanager
def listening() -> Iterator[Wish]:
    """The first signal sets the wish, and that of whoever listens around it; the same once more acts as it always did.

    A signal that is ignored stays so: a shell lets what it starts in the background ignore the Ctrl-C meant for others.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # Python delivers signals to the main thread only
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *BATCH)}
    wish.before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in wish.before:
        signal.signal(number, wish.note)
    try:
        yield wish
    finally:
        for number, handler in wish.before.items():
            if number not in wish.signals:
                signal.signal(number, handler)


@contextmanager
def deferring() -> Iterator[None]:
    """A signal reaches whoever handled it before only on leaving, when the run inside has saved.

    Under submitit that is its handler, which requeues the job and ends the process; in a sweep it ends the sweep, also where
    the signal came too late to end the run.
    """
    with listening() as wish:
        try:
            yield
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # the first one says where the run stands
                _hand_on(wish)
            raise
    _hand_on(wish)


def _hand_on(wish: Wish) -> None:
    for number in wish.signals:
        handler = signal.getsignal(number)  # back in its place since the signal came
        if callable(handler):
            handler(number, None)


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """SIGTERM and its like raise KeyboardInterrupt at once, as Ctrl-C does, where nothing has to be saved first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in BATCH}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
