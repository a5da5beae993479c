"""Importing in less time: a library without another one that nothing here needs, and without looking for garbage meanwhile."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_SELDOM = 50_000  # objects made between two looks for garbage, while modules are loaded that stay
_before: list[tuple[int, int, int]] = []


@contextmanager
def without(library: str, *stand_ins: ModuleType) -> Iterator[None]:
    """Let a library that is not loaded yet look as if it were not installed, or as if it held no more than its stand-ins.

    Args:
        library: Its name.
        stand_ins: One with its name, and others with the names of modules in it.
    """
    if library in sys.modules:
        yield
        return
    shown: dict[str, Any] = {library: None, **{each.__name__: each for each in stand_ins}}
    sys.modules.update(shown)
    try:
        yield
    finally:
        for name in shown:
            del sys.modules[name]


@contextmanager
def loading(library: str) -> Iterator[None]:
    """Where modules are loaded that stay, in a process that no command of ours has begun: of a launcher, say.

    Args:
        library: What takes most of the time; nothing is changed where it is there.
    """
    if library in sys.modules:
        yield
        return
    begin()
    try:
        yield
    finally:
        end()


def begin() -> None:
    """Much is going to be loaded: Python would look through all of it again and again for garbage, a second in all."""
    if not _before:
        _before.append(gc.get_threshold())
        gc.set_threshold(_SELDOM)


def end() -> None:
    """It is loaded, and what follows may leave garbage: that is looked for as ever, but not in what is there by now."""
    if _before:
        gc.freeze()
        gc.set_threshold(*_before.pop())
