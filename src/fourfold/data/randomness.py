"""Foreign code that draws random numbers: from a seed of its own, and without a trace in the run's generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the CPU generators of Python, numpy and torch back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def start(seed: int) -> None:
    """Start the CPU generators of Python, numpy and torch from `seed`.

    `torch.manual_seed` would start those of the GPUs as well, which nothing puts back.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what many augmentation libraries draw from
    torch.default_generator.manual_seed(seed)
