"""Two processes (gloo, on the CPU) that share a run end with the weights of one, whatever joins the loss; or say why not."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold import ranks
from fourfold.config import ConfigError
from fourfold.files import lock
from fourfold.run import run
from two_processes import REFUSED, WORDS, configured

Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("gpus", "rank", "told"),
    [
        (1, 1, "torchrun has started 2 processes or more on a machine with 1 GPU: start --nproc-per-node=1, or"),
        (2, 2, "on a machine with 2 GPUs: start --nproc-per-node=2, or choose trainer.device=cpu"),
        (0, 0, "trainer.device=cuda, but PyTorch sees no such GPU here: choose trainer.device=auto or cpu"),
    ],
)
def test_a_gpu_that_is_not_there(gpus: int, rank: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=told):
        ranks._device("cuda", rank)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_an_apple_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"trainer.device=mps, but .* choose trainer.device=auto or cpu"):
        ranks._device("mps", 0)


def free_ports(number: int) -> list[int]:
    """As many, all different, below those that the system gives to whoever asks for any: one may be needed minutes later."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == number:
            break
    return found


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one of the processes of pytest-xdist fills for all."""
    folder = Path(os.environ["FOURFOLD_TEST_ROOT"]) / "torchrun" / name
    with lock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


@pytest.fixture(scope="module")
def two() -> Path:
    """Where the runs of two processes lie."""
    return once("two", of_two)


@pytest.fixture(scope="module")
def one() -> Path:
    """Where the same runs lie, of one process."""
    return once("one", of_one)


def of_two(folder: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    ports = [str(port) for port in free_ports(len(WORDS) + len(REFUSED))]
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(folder), *ports],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        timeout=600,
    )


def of_one(folder: Path) -> None:
    for name in WORDS:
        run(configured(name), folder / name)


def weights(folder: Path) -> Weights:
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def apart(first: Weights, second: Weights) -> float:
    """Euclidean distance of what both have."""
    shared = [name for name in first if name in second and first[name].is_floating_point()]
    return float(torch.stack([(first[name] - second[name]).double().square().sum() for name in shared]).sum().sqrt())


@pytest.mark.parametrize("name", WORDS)
def test_two_processes_end_with_the_weights_of_one(name: str, one: Path, two: Path) -> None:
    """Far nearer to each other than the term has moved them, in one epoch: in the second a ReLU or a steep loss magnifies
    rounding to a hundredth of that, also of one process whose learning rate is changed by a hundred-thousandth."""
    ours, theirs = weights(one / name), weights(two / name)
    assert ours.keys() == theirs.keys()
    moved = apart(ours, weights(one / "plain")) if name != "plain" else 1.0
    assert moved > 1e-3
    assert apart(ours, theirs) < 1e-3 * moved + 1e-6
    results = [json.loads((folder / name / "result.json").read_text()) for folder in (one, two)]
    assert [result["world"] for result in results] == [1, 2]
    loss, other = (result["metrics"]["train"]["loss"] for result in results)
    assert other == pytest.approx(loss, rel=1e-5)
    assert results[0]["confusion"] == results[1]["confusion"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_whole_batch_in_each_process_is_refused(name: str, two: Path) -> None:
    said = (two / f"{name}.txt").read_text()
    assert "compares the images of a step with each other" in said
    assert "choose accumulate=1 and a multiple of 2" in said
    assert not (two / name / "result.json").exists()


def test_answers_and_mistakes_of_two_processes_are_those_of_one(one: Path, two: Path) -> None:
    """Each process has seen a share of the test images, which come back in their order."""
    ours, theirs = (np.load(folder / "plain" / "answers.npz") for folder in (one, two))
    for column in ("target", "predicted"):
        assert ours[column].tolist() == theirs[column].tolist()
    np.testing.assert_allclose(ours["confidence"], theirs["confidence"], atol=2e-3)  # float16
    mistakes, others = (json.loads((folder / "plain" / "mistakes.json").read_text()) for folder in (one, two))
    assert [each["image"] for each in mistakes] == [each["image"] for each in others]
    assert (one / "plain" / "mistakes.jpg").read_bytes() == (two / "plain" / "mistakes.jpg").read_bytes()
