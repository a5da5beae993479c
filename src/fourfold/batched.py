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
from torch.optim import SGD, Adam, AdamW, Optimizer

from fourfold.assembly import Parts
from fourfold.features import ActivationSet, taken
from fourfold.loop import CHECK_EVERY, NonFiniteLoss, not_finite
from fourfold.metrics import of_many
from fourfold.optim import Lbfgs

ANSWERS = 1 << 26  # numbers that a stack holds at a time when it is validated; beyond them each run validates by itself
EACH_BY_ITSELF = (SGD, Adam, AdamW)  # what they do to a parameter depends on no other; some of timm's look at all of them


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
    return (*head.weight.shape, head.bias is None, head.weight.dtype, head.weight.device, kit.autocast, kit.task, *sizes)


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
    every = CHECK_EVERY if stack.device.type == "cuda" else 1
    pending: list[Tensor] = []
    first = members[0]
    for step in range(first.state.step_in_epoch, first.steps):
        pending.append(stack.step(step))
        if len(pending) >= every:
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

    def __post_init__(self) -> None:
        stored = [parts.stored for parts in self.members]
        self.heads = [head_of(parts) for parts in self.members]
        self.sets = [each.train for each in stored if each is not None and each.train is not None]
        orders = [(parts.train.order(parts.state.epoch), parts.state.epoch) for parts in self.members]
        self.places = np.stack([each.places(*order) for each, order in zip(self.sets, orders, strict=True)])  # [K, images]
        self.weight = torch.stack([head.weight.detach() for head in self.heads])
        self.bias = None if self.heads[0].bias is None else torch.stack([head.bias.detach() for head in self.heads])
        self.device = self.weight.device
        targets = torch.stack([each.labels[order] for each, (order, _) in zip(self.sets, orders, strict=True)])
        self.targets = targets.to(self.device, non_blocking=True)  # [K, images, ...]
        self.learning = [[*head.parameters()] for head in self.heads]  # its weight, and its bias if it has one
        for k, parameters in enumerate(self.learning):  # the optimizers of the runs now change the stack
            for parameter, stack in zip(parameters, (self.weight, self.bias), strict=False):
                assert stack is not None
                parameter.data = stack[k]
        self.optimizers = _joined([parts.optimizer for parts in self.members])
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
        by_weight = torch.bmm(gradient.mT, rows).to(self.weight.dtype)  # [K, C, D]
        by_bias = gradient.sum(1).to(self.weight.dtype)  # [K, C]
        gradients = zip(by_weight.unbind(), by_bias.unbind(), strict=True)
        for k, (parts, parameters, its) in enumerate(zip(self.members, self.learning, gradients, strict=True)):
            if k in self.errors:
                continue
            parts.set_rate(parts.state.step)
            for parameter, each in zip(parameters, its, strict=False):
                parameter.grad = each
            if parts.kit.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, parts.kit.clip_norm)
            parts.state.step += 1
            parts.state.step_in_epoch += 1
        for optimizer in self.optimizers:
            optimizer.step()
        return losses

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
        images_in = self.members[0].train.images_in
        values = torch.stack(pending).tolist()  # [steps, K]
        for k, parts in enumerate(self.members):
            state = parts.state
            for i, row in enumerate(values):
                if k in self.errors:
                    break
                if not math.isfinite(row[k]):
                    at = state.step - len(values) + i
                    self.errors[k] = not_finite(row[k], state.epoch, at, parts.set_rate(at))
                    others = [each.optimizer for j, each in enumerate(self.members) if j not in self.errors]
                    self.optimizers = _joined(others)
                    break
                images = images_in(state.step_in_epoch - len(values) + i)
                state.loss_sum += row[k] * images
                state.images += images
        pending.clear()

    def part(self) -> None:
        """Every head gets its weights for itself: a checkpoint of a part of a stack would hold all of it."""
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


def _joined(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Optimizers that do in few calls what these do: one for all of a kind, with their groups and their memory. A call costs
    more than what it computes for a head."""
    kinds: set[type[Any]] = {type(each) for each in optimizers}
    if len(kinds) != 1 or not kinds.issubset(EACH_BY_ITSELF):
        return [*optimizers]
    whole: Optimizer = kinds.pop()([group for each in optimizers for group in each.param_groups])
    for each in optimizers:
        for group in each.param_groups:
            whole.state.update((parameter, each.state[parameter]) for parameter in group["params"])
    return [whole]


def _runs_of(sets: Sequence[ActivationSet]) -> list[tuple[int, int]]:
    starts = [i for i, each in enumerate(sets) if i == 0 or each.store is not sets[i - 1].store]
    return list(zip(starts, [*starts[1:], len(sets)], strict=True))
