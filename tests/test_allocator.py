"""What freed tensors leave behind is used again, unless the environment says how memory is to be handled."""

import os
import platform
import subprocess
import sys

import pytest

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
