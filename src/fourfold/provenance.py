"""Where a number came from: versions of the libraries, and the state of the code."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("fourfold", "torch", "torchvision", "timm", "torchmetrics", "hydra-core", "omegaconf", "wandb", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Python and the libraries that can change a result."""
    return dict(_versions())


@functools.cache  # 30 ms, and a run of a sweep asks several times; what is imported does not change
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache  # of the code that this process has imported
def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, with `-dirty` where it was changed; None outside one."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 and tracked.returncode == 0 else None
