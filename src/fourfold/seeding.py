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
    """The state of every generator, for `set_rng_state` in this process."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(legacy=True),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def in_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """What `rng_state` returned, as tensors and plain values that `torch.load(weights_only=True)` reads."""
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    whole = torch.tensor(words, dtype=torch.int64), torch.from_numpy(keys.astype(numpy.int64))
    return {**state, "python": (version, whole[0], gauss), "numpy": (name, whole[1], *rest)}


def of_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """What `in_tensors` was given."""
    version, words, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    return {
        **state,
        "python": (version, tuple(words.tolist()), gauss),
        "numpy": (name, keys.numpy().astype(numpy.uint32), *rest),
    }


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
