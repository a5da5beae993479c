"""The exact linear probe: logistic regression on stored features, solved by L-BFGS for each of a row of L2 penalties.

Kornblith, Shlens and Le 2019 (arXiv 1805.08974) judge a network's features so: no learning rate, no number of epochs, and the
penalty chosen on validation. Here each epoch of a run is one penalty, from the strongest to the weakest, so that validation,
best epoch, early stopping, pruning and resuming are those of any run; each fit starts from the weights of the one before.
"""

import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold.activations import free_memory
from fourfold.assembly import Parts
from fourfold.batched import Trained, head_of
from fourfold.config import ConfigError
from fourfold.features import taken
from fourfold.loop import not_finite
from fourfold.optim import Lbfgs

log = logging.getLogger(__name__)
CHUNK = 4096  # images whose features are in float64 at once
HISTORY = 20  # pairs of steps and changes of slope that L-BFGS remembers


def penalty(parts: Parts, epoch: int) -> float | None:
    """The L2 penalty of an epoch; None where the run has another optimizer."""
    if not isinstance(parts.optimizer, Lbfgs):
        return None
    settings, last = parts.optimizer.settings, max(1, parts.config.trainer.epochs - 1)
    return float(settings.l2_max * (settings.l2_min / settings.l2_max) ** (epoch / last))


def fit(parts: Parts, interrupted: Callable[[], bool]) -> Trained:
    """Bring the head to the optimum for the coming epoch's penalty, and account for it in the state.

    Minimised is the sum of the cross-entropy over the training images + l2 / 2 * |W|^2, without the bias; the `C` of
    scikit-learn is 1 / l2. In float64 from the head's own weights, so a resumed run gives the same numbers.

    Raises:
        ConfigError: the features of the run are not stored, or the head is not a linear layer.
    """
    started = time.perf_counter()
    if interrupted():
        return Trained(False, 0.0)
    stored, state = parts.stored, parts.state
    if stored is None or stored.train is None or stored.split.cut.head is None or len(stored.split.cut.slots) != 1:
        raise ConfigError(
            "optimizer=lbfgs needs a linear head on stored features, and those of this run are not stored (the log says why): "
            "set cache.activations=auto and transform=none, or choose optimizer=sgd"
        )
    parts.begin_to_move()
    head = head_of(parts)
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"optimizer=lbfgs solves for a linear head, but this one is a {type(head).__name__}: choose optimizer=sgd"
        )
    chunks, images = _features(parts, head)
    l2 = penalty(parts, state.epoch)
    assert l2 is not None
    weight = head.weight.detach().double().requires_grad_()
    bias = None if head.bias is None else head.bias.detach().double().requires_grad_()
    unknown = [each for each in (weight, bias) if each is not None]
    loss = parts.config.trainer.loss
    weights = getattr(parts.kit.loss, "keywords", {}).get("weights")  # of the classes
    weights = None if weights is None else weights.double()
    total = 0.0

    def objective() -> float:
        """The mean over the images, with its slope; as a sum over chunks of images."""
        nonlocal total
        total = 0.0
        for each in unknown:
            each.grad = None
        for features, labels in chunks():
            logits = functional.linear(features.double(), weight, bias)
            each = functional.cross_entropy(logits, labels, weights, label_smoothing=loss.label_smoothing, reduction="none")
            (each.sum() / images).backward()
            total += float(each.detach().sum())
        shrink = l2 / (2 * images) * weight.square().sum()
        shrink.backward()
        return total / images + float(shrink.detach())

    settings = parts.optimizer.settings  # type: ignore[attr-defined]
    solver = torch.optim.LBFGS(
        unknown,
        max_iter=settings.max_iter,
        max_eval=2 * settings.max_iter,
        tolerance_grad=settings.tolerance,
        tolerance_change=1e-14,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    solver.step(objective)
    value = objective()
    slope = max(float(each.grad.abs().max()) for each in unknown if each.grad is not None)
    if not np.isfinite(value):
        return Trained(True, time.perf_counter() - started, not_finite(value, state.epoch, state.step, l2))
    if slope > 10 * settings.tolerance:
        log.warning(
            "l2=%.3g: the slope is still %.2g after %d iterations; raise optimizer.kwargs.max_iter",
            l2,
            slope,
            settings.max_iter,
        )
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None and head.bias is not None:
            head.bias.copy_(bias)
    state.step += int(solver.state[unknown[0]]["n_iter"])
    state.loss_sum, state.images = total, images
    return Trained(True, time.perf_counter() - started)


def _features(parts: Parts, head: nn.Linear) -> tuple[Callable[[], Iterator[tuple[Tensor, Tensor]]], int]:
    """Chunks of features [N, D] and labels [N] of the training images, held in memory where they fit; how many images."""
    assert parts.stored is not None
    assert parts.stored.train is not None
    rows, device = parts.stored.train, head.weight.device
    limit = parts.config.trainer.limit_train_batches
    order = parts.train.order(parts.state.epoch)
    chosen = sorted(order if limit is None else order[: limit * parts.train.batch_size])

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start : start + CHUNK]
            (features,) = taken(rows.store, rows.places(some, 0), rows.dtypes)
            yield features.to(device), rows.labels[some].to(device)

    if len(chosen) * head.in_features * 4 > free_memory() // 4:
        return read, len(chosen)
    held = list(read())
    return lambda: iter(held), len(chosen)
