"""One plain loop over batches of images and targets. What is frozen, cached, tracked or searched is outside."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fourfold import metrics as measure
from fourfold.losses import Loss
from fourfold.metrics import MetricCollection
from fourfold.planes import narrow
from fourfold.ranks import Ranks
from fourfold.state import State
from fourfold.zoo import ModelEmaV3

Batch = Sequence[Any]  # (images, targets), (images, targets, mask), or (a tuple of stored activations, targets)
Penalty = Callable[[Any, Tensor], Tensor]  # (inputs as the network was given them, targets) -> a scalar, after a forward pass
CHECK_EVERY = 50  # steps between two looks at what a GPU has computed, since each look waits for it


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite: the weights are lost, and a search should hear of it."""


@dataclass(frozen=True)
class Kit:
    """What a step needs beside the network, the batch and the optimizer."""

    ranks: Ranks
    task: str
    loss: Loss
    eval_loss: Loss
    prepare: Callable[..., Tensor]  # uint8 [N, C, H, W], and the mask where there is one -> normalised float32
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    autocast: torch.dtype | None
    scaler: torch.amp.GradScaler
    clip_norm: float | None
    channels_last: bool
    takes_mask: bool
    spread: float = 1.0  # of a regression's target, see `data.Scale`
    penalty: Penalty | None = None  # see regularizers and adaptation


@contextmanager
def kernels_tried() -> Iterator[None]:
    """cuDNN tries its kernels on each new shape, seconds for a deep network: for steps that come again and again only."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def train_one_epoch(
    net: nn.Module,
    steps: Iterable[Sequence[Batch]],
    kit: Kit,
    optimizer: Optimizer,
    state: State,
    *,
    images_in: Callable[[int], int],
    set_rate: Callable[[int], float],
    ema: ModelEmaV3 | None,
    should_stop: Callable[[], bool],
    on_step: Callable[[Callable[[], float], float], Any],
) -> bool:
    """Train for what remains of one epoch, and account for it in `state`.

    Args:
        net: In or out of DistributedDataParallel.
        steps: Each item is one optimizer step: its micro-batches (this process's share).
        kit: See above.
        optimizer: Holds what learns.
        state: Counts on: step, step_in_epoch, loss_sum, images.
        images_in: Images of the step with this index in the epoch, over all processes.
        set_rate: Sets the learning rates for a global step and returns the head's.
        ema: Updated after every step.
        should_stop: Asked after every step, of several GPUs after every fiftieth; true leaves the epoch unfinished.
        on_step: Told (a function that gives the loss, the learning rate).

    Returns:
        Whether the epoch is complete.

    Raises:
        NonFiniteLoss: with epoch, step and learning rate.
    """
    net.train()
    pending: list[tuple[int, float, Tensor]] = []
    every = _check_every(kit)
    for micro_batches in steps:
        lr = set_rate(state.step)
        images = images_in(state.step_in_epoch)
        loss = _step(net, micro_batches, images, kit, optimizer)
        if ema is not None:
            ema.update(unwrap(net), step=state.step)
        pending.append((images, lr, loss))
        state.step += 1
        state.step_in_epoch += 1
        if settled := len(pending) >= every:
            _settle(pending, state)
        on_step(loss.item, lr)
        if (settled or kit.ranks.world == 1) and should_stop():  # several processes ask each other, and so wait
            _settle(pending, state)
            return False
    _settle(pending, state)
    return True


def _step(net: nn.Module, micro_batches: Sequence[Batch], images: int, kit: Kit, optimizer: Optimizer) -> Tensor:
    """One optimizer step; returns this process's part of the mean loss over `images`, on the device."""
    total = torch.zeros((), device=kit.ranks.device)
    for i, (inputs, targets, *mask) in enumerate(micro_batches):
        inputs, targets, mask = _to_device(inputs, targets, mask, kit)
        inputs = _prepared(inputs, mask, kit)
        if kit.mix is not None:
            inputs, targets = kit.mix(inputs, targets)
        last = i == len(micro_batches) - 1
        quiet = net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()
        with quiet:
            with autocast(kit):
                outputs = _forward(net, inputs, mask, kit)
            # a sum over all micro-batches and processes, divided once; DDP divides by the number of processes, hence `world`
            loss = kit.loss(outputs, targets).sum() / images
            if kit.penalty is not None:  # a mean over micro-batches and processes, as the loss is
                loss = loss + kit.penalty(inputs, targets) * (len(targets) / images)
            kit.scaler.scale(loss * kit.ranks.world).backward()
        total += loss.detach()
    if kit.clip_norm is not None:
        kit.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], kit.clip_norm)
    kit.scaler.step(optimizer)
    kit.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total


def _settle(pending: list[tuple[int, float, Tensor]], state: State) -> None:
    """Bring the losses of the last steps from the device, and refuse one that is not finite."""
    first = state.step - len(pending)
    for i, (images, lr, loss) in enumerate(pending):
        value = float(loss)
        if not math.isfinite(value):
            raise not_finite(value, state.epoch, first + i, lr)
        state.loss_sum += value * images
        state.images += images
    pending.clear()


def not_finite(value: float, epoch: int, step: int, lr: float) -> NonFiniteLoss:
    """What to say of a loss after which the weights are lost."""
    if step == 0:
        return NonFiniteLoss(
            f"the loss is {value} before anything was learned: an image, a target or a weight is not finite, "
            "or is too large for trainer.precision"
        )
    return NonFiniteLoss(
        f"the loss is {value} at epoch {epoch}, step {step}, with a learning rate of {lr:.3g}: "
        "try a lower optimizer.lr, a longer scheduler.warmup_epochs, or trainer.clip_norm=1.0"
    )


@torch.no_grad()
def evaluate(
    net: nn.Module,
    steps: Iterable[Sequence[Batch]],
    kit: Kit,
    metrics: MetricCollection,
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, Any]:
    """Loss and metrics of `net` in eval mode over all batches of all processes; `on_batch` sees each of this process's.

    Returns:
        `loss`, one float per scalar metric, and `confusion` as nested lists where it is measured.
    """
    net = unwrap(net)
    was_training = net.training
    net.eval()
    metrics.reset()
    sums: list[Tensor] = []
    waiting: list[tuple[Tensor, Tensor]] = []  # outputs and targets that no metric has seen: counting waits for the device
    images = 0
    for micro_batches in steps:
        for inputs, targets, *mask in micro_batches:
            inputs, targets, mask = _to_device(inputs, targets, mask, kit)
            with autocast(kit):
                outputs = _forward(net, _prepared(inputs, mask, kit), mask, kit)
            sums.append(kit.eval_loss(outputs, targets).sum())  # fetched in the end: a look at each would wait for the device
            images += len(targets)
            if on_batch is not None:
                on_batch(outputs, targets)
            waiting.append((outputs, targets))
            if len(waiting) >= _check_every(kit):
                measure.update(metrics, kit.task, *map(torch.cat, zip(*waiting, strict=True)))
                waiting.clear()
    if waiting:
        measure.update(metrics, kit.task, *map(torch.cat, zip(*waiting, strict=True)))
    net.train(was_training)
    loss_sum = sum(torch.stack(sums).tolist()) if sums else 0.0
    total, count = kit.ranks.total(loss_sum, images)
    return {"loss": total / max(1, count), **measure.values(metrics, kit.spread)}


def _check_every(kit: Kit) -> int:
    return CHECK_EVERY if kit.ranks.device.type == "cuda" else 1


def unwrap(net: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or the network itself."""
    return net.module if isinstance(net, DistributedDataParallel) else net


def _to_device(inputs: Any, targets: Tensor, mask: list[Tensor], kit: Kit) -> tuple[Any, Tensor, list[Tensor]]:
    """A batch where the network is. On CUDA it travels on a stream of its own: the host runs ahead of the device there, so that
    the next batch arrives while this one is computed (from pinned memory, see dataset.loader.pin_memory)."""
    if kit.ranks.device.type != "cuda":
        return _moved(inputs, targets, mask, kit)
    here, beside = torch.cuda.current_stream(kit.ranks.device), _copies(kit.ranks.device)
    with torch.cuda.stream(beside):
        moved = _moved(inputs, targets, mask, kit)
    here.wait_stream(beside)
    inputs, targets, mask = moved
    for tensor in (*(inputs if isinstance(inputs, tuple) else [inputs]), targets, *mask):
        tensor.record_stream(here)  # else its memory could be given away while it is in use here
    return moved


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _moved(inputs: Any, targets: Tensor, mask: list[Tensor], kit: Kit) -> tuple[Any, Tensor, list[Tensor]]:
    device = kit.ranks.device
    targets, mask = targets.to(device, non_blocking=True), [part.to(device, non_blocking=True) for part in mask]
    if isinstance(inputs, tuple):
        return tuple(part.to(device, non_blocking=True) for part in inputs), targets, mask
    layout = torch.channels_last if kit.channels_last else torch.preserve_format
    there = narrow(inputs).to(device, non_blocking=True).expand(inputs.shape)
    return there.to(memory_format=layout), targets, mask


def _prepared(inputs: Any, mask: list[Tensor], kit: Kit) -> Any:
    """Images normalised; activations are what normalised images have become."""
    return inputs if isinstance(inputs, tuple) else kit.prepare(inputs, *mask)


def _forward(net: nn.Module, inputs: Any, mask: list[Tensor], kit: Kit) -> Tensor:
    if isinstance(inputs, tuple):
        return net(*inputs)
    return net(inputs, mask=mask[0]) if mask and kit.takes_mask else net(inputs)


def ready(images: Tensor, kit: Kit) -> Tensor:
    """A batch of uint8 images as the network sees them: on the device, in the run's memory layout, normalised."""
    inputs, _, _ = _to_device(images, images.new_empty(0), [], kit)
    return _prepared(inputs, [], kit)


def autocast(kit: Kit) -> torch.autocast | nullcontext[None]:
    return nullcontext() if kit.autocast is None else torch.autocast(kit.ranks.device.type, dtype=kit.autocast)
