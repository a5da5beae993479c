"""What a run holds in memory: its peak, and how many images at once, fewer after it has run out of memory."""

import gc
import logging
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fourfold.config import RunConfig, TrainerConfig
from fourfold.files import read_json, write_json
from fourfold.records import asdict

log = logging.getLogger(__name__)
FILE = "memory.json"


class OutOfMemory(RuntimeError):
    """The device has too little memory.

    Attributes:
        training: Whether it was a training step; otherwise it was an evaluation.
        runs: That were held at once.
    """

    def __init__(self, sentence: str, *, training: bool, runs: int = 1) -> None:
        super().__init__(sentence)
        self.training, self.runs = training, runs


@dataclass(frozen=True)
class Portion:
    """What is held at once. The images of one optimizer step stay `trainer.batch_size`, in more micro-batches."""

    accumulate: int
    eval_batch_size: int
    memory_retries: int = 0

    @classmethod
    def of(cls, trainer: TrainerConfig, folder: Path) -> "Portion":
        """What the config asks for, or what the run in `folder` has come down to: the same memory would run out again."""
        asked = cls(trainer.accumulate, trainer.eval_batch_size)
        if not (folder / FILE).exists():
            return asked
        kept = cls(**read_json(folder / FILE))
        return replace(
            kept,
            accumulate=max(asked.accumulate, kept.accumulate),
            eval_batch_size=min(asked.eval_batch_size, kept.eval_batch_size),
        )

    def into(self, config: RunConfig) -> RunConfig:
        """The run that is built, which has the identity of `config` all the same."""
        trainer = replace(config.trainer, accumulate=self.accumulate, eval_batch_size=self.eval_batch_size)
        return replace(config, trainer=trainer)

    def smaller(self, error: OutOfMemory, batch_size: int) -> "Portion":
        """The next portion: after a training step half the micro-batch (or the next smaller that divides `batch_size`) and
        half of what is evaluated at once; after an evaluation the latter alone, which changes no result.

        Raises:
            OutOfMemory: it was a single image already.
        """
        held = batch_size // self.accumulate if error.training else self.eval_batch_size
        if held <= 1:
            key = f"trainer.batch_size={batch_size}" if error.training else "trainer.eval_batch_size=1"
            raise OutOfMemory(
                f"{key} does not fit into memory even one image at a time ({error}): choose a smaller model.name or "
                "model.image_size, trainer.precision=bf16, or a device with more memory",
                training=error.training,
            )
        fewer = (count for count in range(2 * self.accumulate, batch_size + 1) if batch_size % count == 0)
        return Portion(
            accumulate=next(fewer, batch_size) if error.training else self.accumulate,
            eval_batch_size=max(1, self.eval_batch_size // 2),
            memory_retries=self.memory_retries + 1,
        )

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


@contextmanager
def watched(world: int, *, training: bool, runs: int = 1) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out into `OutOfMemory`.

    Args:
        world: Processes that share the run.
        training: As `OutOfMemory` has it.
        runs: Likewise.

    Raises:
        torch.OutOfMemoryError: where several processes share the run. The others wait for this one in the middle of a step, so
            none can go back; torchrun ends them.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if world > 1:
            raise torch.OutOfMemoryError(
                f"a process of {world} ran out of memory ({_first_line(error)}): under torchrun nothing is tried again, so "
                "give a larger trainer.accumulate or a smaller trainer.eval_batch_size yourself"
            ) from error
        raise OutOfMemory(_first_line(error), training=training, runs=runs) from error


def measure_peak(device: torch.device) -> None:
    """Begin to measure `peak` on a GPU: runs that a process has had before may have taken more."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Bytes that were held at once at most: by the GPU's allocator since `measure_peak`; without a GPU by the whole process,
    which keeps what earlier runs have freed. Runs that train their heads together have one peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release(error: BaseException) -> None:
    """Let go of what an exception's frames hold, such as a network on a GPU, and give the GPU's memory back.

    The exception keeps its traceback, which can be printed as before.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    """cuBLAS and cuDNN find no room for their own buffers, and say so in words only."""
    names = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(name in str(error) for name in names)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
