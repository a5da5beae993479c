"""Importing a library without another one that it loads and that nothing here needs: part of a second of every start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without(library: str, stand_in: ModuleType | None = None) -> Iterator[None]:
    """Let a library that is not loaded yet look as if it were not installed, or as if it held no more than its stand-in."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]
