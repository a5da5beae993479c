"""The processes that share one run under torchrun; alone, a run is rank 0 of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from fourfold import allocator
from fourfold.config import ConfigError


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device if self.device.type == "cuda" else "cpu")
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.total(float(flag))[0] > 0

    def rows(self, own: Tensor) -> Tensor:
        """Rows [N, ...] of all processes, in the order of their ranks; N may differ between processes, and be 0.

        Gradients reach this process's own rows, as if each process had the loss of all rows by itself: they are multiplied by
        (rows of all) / (own rows), since the loop weighs each process's loss by its share.
        """
        if self.world == 1:
            return own
        sizes = [int(size) for size in self._gathered(torch.tensor([len(own)], device=own.device))]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [part[:size] for part, size in zip(self._gathered(padded), sizes, strict=True)]
        if own.requires_grad:
            parts[self.rank] = own + (sum(sizes) / len(own) - 1) * (own - own.detach())
        return torch.cat(parts)

    def _gathered(self, own: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(own) for _ in range(self.world)]
        distributed.all_gather(parts, own)
        return parts

    def share(self, of_first: Tensor) -> Tensor:
        """Every `world`-th of the first process's rows, beginning with this process's rank: of all, each row goes to one.

        Args:
            of_first: Of the same shape and type everywhere.
        """
        if self.world > 1:
            there = of_first.to(self.device)
            distributed.broadcast(there, src=0)
            of_first = there.to(of_first.device)
        return of_first[self.rank :: self.world]

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun announces (gloo on the CPU, nccl on CUDA), or stand alone.

    Args:
        device: auto, cpu, cuda or mps.

    Raises:
        ConfigError: there is no GPU for this process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1, _device(device, 0))
        return
    chosen = _device(device, int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cpu":
        allocator.keep_freed()
        return torch.device("cpu")
    there = torch.cuda.device_count() if name == "cuda" else int(torch.backends.mps.is_available())
    if not there:
        raise ConfigError(f"trainer.device={name}, but PyTorch sees no such GPU here: choose trainer.device=auto or cpu")
    if name == "mps":
        return torch.device("mps")
    if local_rank >= there:
        raise ConfigError(
            f"torchrun has started {local_rank + 1} processes or more on a machine with {there} GPU{'s' * (there > 1)}: "
            f"start --nproc-per-node={there}, or choose trainer.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
