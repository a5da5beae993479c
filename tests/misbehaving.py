"""Models of a user's that go wrong in the ways in which runs do, for `model=custom model._target_=misbehaving.small`."""

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A convolution and a linear head, without batch statistics, so that micro-batches change nothing but rounding."""

    def __init__(self, num_outputs: int, in_chans: int, room: int, eval_room: int, dies: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 4, 3, stride=4, groups=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, num_outputs)
        self.room, self.eval_room, self.dies = room, eval_room, dies
        self.begun = False  # before that, the network is shown one image to learn its shapes

    def forward(self, x: Tensor) -> Tensor:
        self.begun = self.begun or self.training
        if self.begun and len(x) > (self.room if self.training else self.eval_room):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has too little.")
        if self.begun and self.dies == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.begun and self.dies == "exit":
            os._exit(7)
        y = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y * float("nan") if self.begun and self.dies == "diverging" else y


def small(num_outputs: int, in_chans: int, room: int = 10**6, eval_room: int = 10**6, dies: str = "") -> Small:
    """As many images as there is `room` for; at the first one it `dies` as it is told."""
    return Small(num_outputs, in_chans, room, eval_room, dies)


def by_seed(num_outputs: int, in_chans: int, **how: dict[int, Any]) -> Small:
    """`how` it misbehaves at which seed: {room: {3: 0}, dies: {5: kill}}. A run begins by seeding torch."""
    seed = torch.initial_seed()
    return small(num_outputs, in_chans, **{key: values[seed] for key, values in how.items() if seed in values})
