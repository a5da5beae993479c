"""The state of every generator can be put back."""

import random
from pathlib import Path

import numpy
import torch

from fourfold import seeding


def draw() -> tuple[float, float, float]:
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_seed_draws_the_same_numbers() -> None:
    seeding.seed_everything(3)
    first = draw()
    seeding.seed_everything(3)
    assert draw() == first
    seeding.seed_everything(4)
    assert draw() != first


def test_the_state_survives_a_file_read_without_pickle(tmp_path: Path) -> None:
    seeding.seed_everything(3)
    draw()
    torch.save(seeding.in_tensors(seeding.rng_state()), tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)]
    seeding.seed_everything(9)
    seeding.set_rng_state(seeding.of_tensors(torch.load(tmp_path / "rng.pt", weights_only=True)))
    assert [draw() for _ in range(3)] == expected
