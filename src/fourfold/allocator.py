"""Memory that is not given back to be asked for again: what large tensors leave behind on the CPU, and Python's own stack."""

import ctypes
import functools
import os
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

# of mallopt, in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1  # bytes at the heap's end before they are given back


@functools.cache
def keep_freed() -> None:
    """Have glibc keep freed memory for this process; elsewhere, or where the environment tunes it already, nothing changes.

    Every step allocates the same large tensors again. By default glibc maps each anew and unmaps it afterwards, so that the
    kernel clears the same pages over and over: on one core a quarter of the time of a ResNet-18 in eval mode on 128 images of
    128 px, a twelfth of that of a training step. In return the process holds on to the most that it has used.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def with_room(call: Callable[[], Answer]) -> Answer:
    """What `call` returns, with room for a thousand calls inside each other, mapped once.

    CPython (3.11 and later) keeps the frames of its calls in pieces of 16 kB, and maps and unmaps one whenever a call crosses
    the end of the last: a call there takes ten times as long, and in a loop every one of them. A frame of this function asks
    for so much that the piece it lies in has half a megabyte left. Untouched pages cost nothing.
    """
    return call()


_SLOTS = 66_000  # of eight bytes: a little more than half of the megabyte that is mapped for them
with_room.__code__ = with_room.__code__.replace(co_stacksize=_SLOTS)
