"""Ctrl-C and SIGTERM as a wish that the loop grants after its current step, so that nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Wish:
    """Whether the run has been asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def listening() -> Iterator[Wish]:
    """The first Ctrl-C or SIGTERM sets the wish; a second one ends the process as it always did.

    A signal that is ignored stays so: a shell lets what it starts in the background ignore the Ctrl-C meant for others.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # Python delivers signals to the main thread only
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}

    def note(number: int, frame: FrameType | None) -> None:
        wish.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
