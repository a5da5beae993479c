"""Whether the process that holds a trial is still there."""

import os
import socket
import time
from pathlib import Path
from typing import Any

GRACE = 120.0  # seconds without a beat after which a process on another host counts as dead
NAMELESS = 15.0  # seconds in which a process that took a trial must have said who it is; it needs milliseconds
BEAT = 30.0  # seconds between two beats


def holder() -> dict[str, Any]:
    """This process, as others can look for it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "beat": time.time()}


def is_mine(who: dict[str, Any] | None) -> bool:
    """Whether `holder()` described this process."""
    return who is not None and {**who, "beat": 0.0} == {**holder(), "beat": 0.0}


def is_alive(holder: dict[str, Any] | None, started: float) -> bool:
    """Whether the process that `holder()` described lives.

    Args:
        holder: None where the process had no time yet to say who it is.
        started: When the trial began, in seconds since the epoch; a holder that has not named itself has `NAMELESS` from then.

    Returns:
        On this host what the system says, at once; for another host, whether the last beat is younger than `GRACE`.
    """
    if holder is None:
        return time.time() - started < NAMELESS
    if holder["host"] == socket.gethostname():
        return _runs(holder["pid"]) and _born(holder["pid"]) == holder["born"]
    return time.time() - holder["beat"] < GRACE


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] != ["Z"]  # a zombie only waits to be buried


def _born(pid: int) -> str | None:
    """Clock ticks from the start of the system to that of the process (Linux), since a pid may be given again."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name, the state first; empty where there is no such file."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
