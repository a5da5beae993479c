"""A look at where the time of the first steps goes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger(__name__)
SKIPPED, MEASURED = 2, 6  # steps


@contextmanager
def profiling(enabled: bool, folder: Path) -> Iterator[Callable[[], None]]:
    """Yields a function to call after every step; leaves `profile.json` (a Chrome trace) and `profile.txt` in `folder`."""
    if not enabled:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "profile.json"))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
        (folder / "profile.txt").write_text(table, encoding="utf-8")
        log.info("the trace is in %s (open it in ui.perfetto.dev), the table in profile.txt", folder / "profile.json")

    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=SKIPPED, active=MEASURED, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
    ) as profiler:
        yield profiler.step
