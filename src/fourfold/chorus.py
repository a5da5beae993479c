"""Several runs told in step: each its own story, with the epochs that can be trained together trained as one."""

import logging
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fourfold.batched import Trained, kind, train_one_epoch
from fourfold.memory import OutOfMemory, watched
from fourfold.seeding import rng_state, set_rng_state

if TYPE_CHECKING:
    from fourfold.run import Due, Story


@dataclass
class _Voice:
    """One story, with what belongs to it of the state of the process: where it logs, and its random numbers."""

    story: "Story"
    handlers: list[logging.Handler]
    random: dict[str, Any]
    due: "Due | None" = None
    result: dict[str, Any] | None = None
    error: BaseException | None = None
    over: bool = False

    def go_on(self, trained: Trained | Exception | None) -> None:
        """Tell the story up to its next epoch, or to its end; what went wrong with its last epoch is its own to deal with."""
        outside, logging.root.handlers = logging.root.handlers, self.handlers
        set_rng_state(self.random)
        try:
            if isinstance(trained, Exception):
                self.due = self.story.throw(trained)
            else:
                self.due = self.story.send(trained if self.due is not None else None)
        except StopIteration as end:
            self.result, self.over = end.value, True
        except BaseException as error:  # its own: the others go on
            self.error, self.over = error, True
        finally:
            self.random = rng_state()
            logging.root.handlers = outside


@dataclass
class Chorus:
    """Drives stories that begin inside each other: each, when it is ready to begin, lets the next come to the same point, and
    the last tells them all. So whatever was set up around a run is taken down after it, and in the right order.

    Args:
        calls: Each begins a run whose `drive` is this chorus. One that needs no training never comes here.
    """

    calls: deque[Callable[[], Any]]
    voices: list[_Voice] = field(default_factory=list)
    _most: int = sys.maxsize  # epochs that are trained as one: fewer once memory has run out
    _told: bool = False

    def begin(self) -> None:
        """Have every run begun and ended."""
        while self.calls:
            self.calls.popleft()()

    def __call__(self, story: "Story") -> dict[str, Any]:
        """As `run.alone`, for a story among others."""
        mine = _Voice(story, logging.root.handlers[:], rng_state())
        self.voices.append(mine)
        try:
            self.begin()
        except BaseException:  # of a run inside this one; where the whole is to end, this one has been told so as well
            if not mine.over:
                story.close()
                raise
        if not self._told:
            self._told = True
            self._tell()
        logging.root.handlers = mine.handlers
        if mine.error is not None:
            raise mine.error
        assert mine.result is not None
        return mine.result

    def _tell(self) -> None:
        for voice in self.voices:
            voice.go_on(None)
        while singing := [voice for voice in self.voices if not voice.over]:
            alike: dict[Hashable, list[_Voice]] = {}
            for voice in singing:
                assert voice.due is not None
                what = kind(voice.due.parts)
                alike.setdefault(id(voice) if what is None else what, []).append(voice)
            for what, voices in alike.items():
                most = min(self._most, len(voices))
                for start in range(0, len(voices), most):
                    some = voices[start : start + most]
                    trained = [None] * len(some) if isinstance(what, int) else self._trained(some)
                    for voice, each in zip(some, trained, strict=True):
                        voice.go_on(each)

    def _trained(self, voices: Sequence[_Voice]) -> Iterable[Trained | Exception]:
        """What became of an epoch of each."""
        together = [voice.due for voice in voices if voice.due is not None]
        try:
            with watched(1, training=True, runs=len(together)):
                return train_one_epoch([due.parts for due in together], lambda: any(due.interrupted() for due in together))
        except Exception as error:  # each story is told of it, and goes on from its last checkpoint or fails
            if isinstance(error, OutOfMemory):
                self._most = max(1, len(together) // 2)
            broken, where = error, error.__traceback__
        # without the frames of those that were told before, whom it would end when somebody clears them
        return (broken.with_traceback(where) for _ in together)
