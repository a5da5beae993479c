"""Several runs told in step: each its own story, with the epochs that can be trained together trained as one."""

import logging
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fourfold.batched import Trained, kind, train_one_epoch
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

    @property
    def over(self) -> bool:
        return self.result is not None or self.error is not None

    def go_on(self, trained: Trained | None) -> None:
        """Tell the story up to its next epoch, or to its end."""
        outside, logging.root.handlers = logging.root.handlers, self.handlers
        set_rng_state(self.random)
        try:
            self.due = self.story.send(trained if self.due is not None else None)
        except StopIteration as end:
            self.result = end.value
        except BaseException as error:  # its own: the others go on
            self.error = error
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
                together = [voice.due for voice in voices if voice.due is not None]
                trained: list[Trained | None] = [None] * len(voices)
                if not isinstance(what, int):
                    stop = lambda together=together: any(due.interrupted() for due in together)  # noqa: E731
                    trained = [*train_one_epoch([due.parts for due in together], stop)]
                for voice, each in zip(voices, trained, strict=True):
                    voice.go_on(each)
