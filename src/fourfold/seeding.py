"""Random numbers: where they start, and their whole state for a resume."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Start Python, numpy and torch (all devices) from `seed`; `deterministic` makes torch refuse what cannot repeat."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that still draw from numpy's global state
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # it would keep the whole stack of calls for each device that may come
        torch.default_generator.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def rng_state() -> dict[str, Any]:
    """The state of every generator, as tensors and plain values that `torch.load(weights_only=True)` reads."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (name, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def as_before() -> Iterator[None]:
    """Give torch's threads and determinism, and every generator, back as they were: a rehearsal shall leave no trace."""
    numbers, threads = rng_state(), torch.get_num_threads()
    algorithms = torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        set_rng_state(numbers)
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(algorithms)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other processes may share the GPU
