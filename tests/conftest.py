"""Every test runs alone: no network, no account, no user's caches, one thread per process."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest


def _root() -> Path:
    """One temporary folder for the whole session: the processes of pytest-xdist and of the tests inherit its name."""
    if "FOURFOLD_TEST_ROOT" not in os.environ:
        root = tempfile.mkdtemp(prefix="fourfold-tests-")
        os.environ["FOURFOLD_TEST_ROOT"] = root
        atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(os.environ["FOURFOLD_TEST_ROOT"])


ROOT = _root()
BEFORE = gc.get_threshold()
gc.set_threshold(50_000)  # while the tests are collected, and with them all that they import
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background was told to ignore Ctrl-C
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]
os.environ |= {
    # Read when torch is imported, in this process and in those that the tests start.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Read when huggingface_hub is imported; without it a missing network costs a minute of retries.
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(ROOT / "huggingface"),
    "TORCH_HOME": str(ROOT / "torch"),
    # Shared by all tests: what is generated once need not be generated again.
    "FOURFOLD_DATA": str(ROOT / "data"),
    "FOURFOLD_CACHE": str(ROOT / "cache"),
    # Without a key W&B stays offline; these are the places where it would look for one.
    "NETRC": str(ROOT / "netrc"),
    "WANDB_CONFIG_DIR": str(ROOT / "wandb/config"),
    "WANDB_CACHE_DIR": str(ROOT / "wandb/cache"),
    "WANDB_DATA_DIR": str(ROOT / "wandb/data"),
    "WANDB_ERROR_REPORTING": "false",
    "MPLBACKEND": "Agg",
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """For a torch that something imported before this file could speak."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_collection_finish() -> None:
    """Garbage is looked for as ever, but not among what was imported."""
    gc.freeze()
    gc.set_threshold(*BEFORE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes many minutes runs only when it is asked for."""
    for mark in ("kills", "exhaustive", "slow"):
        if mark not in config.getoption("markexpr"):
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(pytest.mark.skip(reason=f"takes minutes: make test-{mark}, or pytest -m {mark}"))
