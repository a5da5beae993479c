"""An epoch of the heads of many runs, and its validation, as one batched module on the stored activations that they share.

Every head keeps its own order of images, loss, schedule, optimizer and state. What is done at once is what costs: reading rows,
the forward and the backward pass, as products of stacks of matrices. The gradients are those of autograd on each head alone,
but for the rounding of a product that a library may compute in another order when it is one of a stack.
"""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold import stacked
from fourfold.assembly import Parts
from fourfold.features import ActivationSet, taken
from fourfold.loop import CHECK_EVERY, NonFiniteLoss, not_finite
from fourfold.metrics import of_many
from fourfold.optim import Lbfgs

ANSWERS = 1 << 26  # numbers that a stack holds at a time when it is validated; beyond them each run validates by itself


@dataclass
class Trained:
    """What remained of an epoch is trained: the weights have learned, the state has counted."""

    whole: bool  # False: somebody has asked to stop
    seconds: float  # this run's share
    error: NonFiniteLoss | None = None
    validated: dict[str, Any] | None = None  # as `loop.evaluate` measures the validation split, where that was done as well


def kind(parts: Parts) -> Hashable | None:
    """Runs of the same kind can train their coming epochs together; None: this one trains alone."""
    stored, kit, state = parts.stored, parts.kit, parts.state
    if stored is None or stored.train is None or stored.split.cut.head is None or len(stored.split.cut.slots) != 1:
        return None
    head = head_of(parts)
    learning = {id(each) for group in parts.optimizer.param_groups for each in group["params"]}
    wandb = parts.config.logger.wandb
    if isinstance(parts.optimizer, Lbfgs):
        return None
    if type(head) is not nn.Linear or learning != {id(each) for each in head.parameters()} or _has_hooks(head):
        return None
    if parts.ema is not None or kit.mix is not None or kit.penalty is not None or kit.scaler.is_enabled():
        return None
    if parts.train.accumulate > 1 or parts.config.trainer.profile or (wandb.enabled and wandb.watch):
        return None
    sizes = (parts.train.images, parts.train.batch_size, parts.steps, state.step_in_epoch)
    numbers = (*head.weight.shape, head.bias is None, head.weight.dtype, head.weight.device, kit.autocast)
    return (*numbers, kit.task, stacked.kind(parts.optimizer), *sizes)


def train_one_epoch(members: Sequence[Parts], should_stop: Callable[[], bool]) -> list[Trained]:
    """Train what remains of one epoch of runs of the same kind, and account for it in their states.

    Args:
        members: At least one run. Their heads change.
        should_stop: Asked after every step; true leaves the epoch of all of them unfinished.

    Returns:
        For each run what became of it, with its validation where that is due; one whose loss is not finite has an error, and
        has not harmed the others.
    """
    started = time.perf_counter()
    for parts in members:
        parts.begin_to_move()
    stack = _Stack(members)
    whole = True
    pending: list[Tensor] = []
    first = members[0]
    for step in range(first.state.step_in_epoch, first.steps):
        pending.append(stack.step(step))
        if len(pending) >= CHECK_EVERY:
            stack.settle(pending)
        if should_stop():
            whole = False
            break
    stack.settle(pending)
    validated = stack.validated() if whole else {}
    stack.part()
    share = (time.perf_counter() - started) / len(members)
    return [Trained(whole, share, stack.errors.get(k), validated.get(k)) for k in range(len(members))]


@dataclass
class _Stack:
    """The heads of several runs, laid over each other: weights [K, C, D], biases [K, C]."""

    members: Sequence[Parts]
    errors: dict[int, NonFiniteLoss] = field(default_factory=dict)
    taken: int = 0  # steps that are accounted for

    def __post_init__(self) -> None:
        stored = [parts.stored for parts in self.members]
        self.heads = [head_of(parts) for parts in self.members]
        self.sets = [each.train for each in stored if each is not None and each.train is not None]
        orders = [np.asarray(parts.train.order(parts.state.epoch)) for parts in self.members]
        seen = zip(self.sets, orders, self.members, strict=True)
        self.places = np.stack([each.places(order, parts.state.epoch) for each, order, parts in seen])  # [K, images]
        self.weight = torch.stack([head.weight.detach() for head in self.heads])
        self.bias = None if self.heads[0].bias is None else torch.stack([head.bias.detach() for head in self.heads])
        self.device = self.weight.device
        targets = torch.stack([each.labels[torch.from_numpy(order)] for each, order in zip(self.sets, orders, strict=True)])
        self.targets = targets.to(self.device, non_blocking=True)  # [K, images, ...]
        self.learning = [[*head.parameters()] for head in self.heads]  # its weight, and its bias if it has one
        stacks = [self.weight] if self.bias is None else [self.weight, self.bias]
        for k, parameters in enumerate(self.learning):
            for parameter, stack in zip(parameters, stacks, strict=True):
                parameter.data = stack[k]
        self.first = self.members[0].state.step_in_epoch
        steps = range(self.members[0].steps - self.first)
        factors = np.array([[parts.factor(parts.state.step + step) for parts in self.members] for step in steps])
        factors = factors.reshape(len(steps), len(self.members))  # where they were stopped after the last step, of none
        optimizers = [parts.optimizer for parts in self.members]
        self.optimizer = stacked.joined(optimizers, self.learning, stacks, factors)
        clips = [parts.kit.clip_norm for parts in self.members]
        self.clips = torch.tensor([math.inf if clip is None else clip for clip in clips], device=self.device)  # [K]
        self.clipped = any(clip is not None for clip in clips)
        losses: dict[Hashable, list[int]] = {}
        for k, parts in enumerate(self.members):
            weights = tuple(parts.splits.class_counts) if parts.config.trainer.loss.class_weights != "none" else ()
            losses.setdefault((repr(parts.config.trainer.loss), weights), []).append(k)
        # heads of a loss, and where they are in the stack: a list of them would be brought to the device in every step
        self.losses = [(self.members[each[0]].kit.loss, self._at(each)) for each in losses.values()]

    def _at(self, some: list[int]) -> slice | Tensor:
        return slice(None) if len(some) == len(self.members) else torch.tensor(some, device=self.device)

    def step(self, step: int) -> Tensor:
        """One optimizer step of every head; returns the mean loss of each over its images, [K], on the device."""
        inputs, targets = self._read(step)  # [K, N, D], [K, N, ...]
        images = inputs.shape[1]
        rows = inputs.to(self.members[0].kit.autocast or inputs.dtype)
        outputs = self._logits(rows, slice(None)).requires_grad_()
        losses = torch.empty(len(self.members), device=self.device)
        total = torch.zeros((), device=self.device)
        for loss_of, at in self.losses:
            some, labels = outputs[at], targets[at]
            loss = loss_of(some.flatten(0, 1), labels.flatten(0, 1)).view(len(some), -1).sum(1) / images
            losses[at] = loss.detach()
            total = total + loss.sum()
        (gradient,) = torch.autograd.grad(total, outputs)  # [K, N, C]
        gradients = [torch.bmm(gradient.mT, rows).to(self.weight.dtype)]  # [K, C, D]
        if self.bias is not None:
            gradients.append(gradient.sum(1).to(self.weight.dtype))  # [K, C]
        self.optimizer.step(step - self.first, self._clipped(gradients) if self.clipped else gradients)
        return losses

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        """As `nn.utils.clip_grad_norm_` does for each head."""
        flat = torch.cat([each.flatten(1) for each in gradients], dim=1)
        factors = (self.clips / (flat.norm(dim=1) + 1e-6)).clamp(max=1)  # [K]
        return [each * factors.to(each.dtype).view(-1, *[1] * (each.ndim - 1)) for each in gradients]

    def _logits(self, rows: Tensor, at: slice | Tensor) -> Tensor:
        """What heads answer, [K, N, C], to their rows [K, N, D]."""
        weight = self.weight[at].to(rows.dtype)
        if self.bias is None:
            return torch.bmm(rows, weight.mT)
        return torch.baddbmm(self.bias[at][:, None].to(rows.dtype), rows, weight.mT)

    @torch.no_grad()
    def validated(self) -> dict[int, dict[str, Any]]:
        """What `loop.evaluate` measures of classifiers whose validation is due, those at once whose splits are of one size."""
        alike: dict[Hashable, list[int]] = {}
        for k, parts in enumerate(self.members):
            images, limit = parts.val.images, parts.config.trainer.limit_eval_batches
            answers = min(images, (limit or images) * parts.val.batch_size) * self.weight.shape[1]
            fits = answers * len(self.members) <= ANSWERS
            if (
                k not in self.errors
                and parts.kit.task == "classification"
                and fits
                and parts.validated_after(parts.state.epoch)
            ):
                alike.setdefault((images, parts.val.batch_size, limit), []).append(k)
        found: dict[int, dict[str, Any]] = {}
        for each in alike.values():
            found |= zip(each, self._validated(each), strict=True)
        return found

    def _validated(self, some: list[int]) -> list[dict[str, Any]]:
        members = [self.members[k] for k in some]
        stored, at = [parts.stored.val for parts in members if parts.stored is not None], self._at(some)
        positions = members[0].val.places(0, members[0].config.trainer.limit_eval_batches)
        places = np.stack([each.places(positions, 0) for each in stored])
        targets = torch.stack([each.labels[positions] for each in stored]).to(self.device, non_blocking=True)
        outputs: list[Tensor] = []
        size = members[0].train.batch_size  # so that no more rows are read at a time than in training
        for start in range(0, len(positions), size):
            rows = self._rows(stored, places[:, start : start + size])
            outputs.append(self._logits(rows.to(members[0].kit.autocast or rows.dtype), at))
        logits = torch.cat(outputs, dim=1)
        pairs = zip(members, logits, targets, strict=True)
        losses = torch.stack([parts.kit.eval_loss(*pair).double().mean() for parts, *pair in pairs]).tolist()
        return [{"loss": loss, **values} for loss, values in zip(losses, of_many(logits, targets), strict=True)]

    def settle(self, pending: list[Tensor]) -> None:
        """Bring the losses of the last steps from the device; a head whose loss is not finite is left where it is."""
        if not pending:
            return
        losses = torch.stack(pending).double().cpu().numpy()  # [steps, K]
        pending.clear()
        images = np.array([self.members[0].train.images_in(self.first + self.taken + i) for i in range(len(losses))])
        before = [[parts.state.loss_sum for parts in self.members]]
        sums = np.cumsum(np.concatenate([before, losses * images[:, None]]), axis=0)[-1].tolist()  # one after the other
        self.taken += len(losses)
        for k, parts in enumerate(self.members):
            state = parts.state
            if k in self.errors:
                continue
            if not math.isfinite(sums[k]):
                first = int(np.flatnonzero(~np.isfinite(losses[:, k]))[0])
                at = state.step + first
                self.errors[k] = not_finite(float(losses[first, k]), state.epoch, at, parts.set_rate(at))
                continue
            state.step += len(losses)
            state.step_in_epoch += len(losses)
            state.loss_sum = sums[k]
            state.images += int(images.sum())

    def part(self) -> None:
        """Every head gets its weights for itself: a checkpoint of a part of a stack would hold all of it."""
        self.optimizer.part(self.taken)
        for parameters in self.learning:
            for parameter in parameters:
                parameter.data = parameter.data.clone()
                parameter.grad = None

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        """Rows [K, N, D] and targets [K, N, ...] of the images that each head sees now."""
        size = self.members[0].train.batch_size
        now = slice(step * size, (step + 1) * size)
        return self._rows(self.sets, self.places[:, now]), self.targets[:, now]

    def _rows(self, sets: Sequence[ActivationSet], places: np.ndarray) -> Tensor:
        """The rows [K, N, D] at these places of some sets, on the device."""
        rows: list[Tensor] = []
        for start, stop in _runs_of(sets):  # neighbours that share a store are read at once
            (some,) = taken(sets[start].store, places[start:stop].ravel(), sets[start].dtypes)
            rows.append(some)
        inputs = rows[0] if len(rows) == 1 else torch.cat(rows)
        return inputs.view(len(sets), -1, inputs.shape[-1]).to(self.device, non_blocking=True)


def head_of(parts: Parts) -> Any:
    """The module that turns stored features into logits."""
    assert parts.stored is not None
    assert parts.stored.split.cut.head is not None
    return parts.net.get_submodule(parts.stored.split.cut.head)


def _has_hooks(head: nn.Module) -> bool:
    return bool(head._forward_hooks or head._forward_pre_hooks or any(each._backward_hooks for each in head.parameters()))


def _runs_of(sets: Sequence[ActivationSet]) -> list[tuple[int, int]]:
    starts = [i for i, each in enumerate(sets) if i == 0 or each.store is not sets[i - 1].store]
    return list(zip(starts, [*starts[1:], len(sets)], strict=True))
