"""What freed tensors leave behind is used again, unless the environment says how memory is to be handled; frames have room."""

import os
import platform
import resource
import subprocess
import sys

import pytest

from fourfold.allocator import with_room

FAULTS = """
import resource, torch
from fourfold.ranks import joined
with joined({device!r}):
    for step in range(40):
        if step == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20)  # 64 MB: glibc would map it, and the kernel clear it page by page
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_pages_of_a_freed_tensor_are_not_cleared_again() -> None:
    assert faults() < 1000
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 20 * 1000, "the user has tuned it"


def faults(**environment: str) -> int:
    """Pages that the kernel had to provide while a tensor was made and freed twenty times."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = FAULTS.format(device="cpu")
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=plain | environment)
    return int(told.stdout)


def mapped(depth: int) -> int:
    """Pages that the system maps while a function is called 300 times inside `depth` other calls."""
    if depth:
        return mapped(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(300):
        leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def leaf() -> None:
    """Called and left."""


leaf.__code__ = leaf.__code__.replace(co_stacksize=100)  # larger than the frames above it: at some depth it is the first across


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count pages otherwise")
def test_no_call_maps_memory_for_its_frame_where_there_is_room() -> None:
    usual = max(mapped(depth) for depth in range(300))
    assert with_room(lambda: max(mapped(depth) for depth in range(300))) < 100
    if sys.version_info < (3, 14):
        assert usual >= 300, "at some depth each call does, else there is nothing to do here"
