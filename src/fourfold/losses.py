"""Losses, one value per image, so that a batch may be split over micro-batches and processes without changing its mean."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fourfold.config import LossConfig

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs [N, K], targets) -> [N]


def create(config: LossConfig, task: str, class_weights: Tensor | None = None) -> Loss:
    """The loss of a task.

    Args:
        config: `auto` is cross-entropy, binary cross-entropy or squared error, after the task.
        task: classification, multilabel or regression.
        class_weights: [K], mean 1 over the training images; classification only.

    Returns:
        A function of outputs [N, K] and targets ([N] classes, [N, K] soft or multi-hot labels, or [N] values) that returns
        one float32 loss per image, [N].
    """
    name = config.name
    if name == "auto":
        name = {"classification": "cross_entropy", "multilabel": "bce", "regression": "mse"}[task]
    if name == "mse":
        return squared_error
    if name == "bce":
        return binary_cross_entropy
    if name == "focal" and task == "multilabel":
        return partial(binary_focal, gamma=config.gamma)
    if name == "focal":
        return partial(focal, gamma=config.gamma, weights=class_weights)
    return partial(cross_entropy, smoothing=config.label_smoothing, weights=class_weights)


def cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """Softmax cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567); soft targets are allowed."""
    return functional.cross_entropy(outputs.float(), targets, weight=weights, label_smoothing=smoothing, reduction="none")


def focal(outputs: Tensor, targets: Tensor, gamma: float, weights: Tensor | None) -> Tensor:
    """-(1 - p)^gamma log p of the true class (Lin et al. 2017, arXiv 1708.02002, eq. 4; alpha is `weights`)."""
    log_p = functional.log_softmax(outputs.float(), dim=1).gather(1, targets[:, None])[:, 0]
    loss = -((1 - log_p.exp()) ** gamma) * log_p
    return loss if weights is None else loss * weights[targets]


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the labels of one image of the sigmoid cross-entropy."""
    return functional.binary_cross_entropy_with_logits(outputs.float(), targets, reduction="none").mean(dim=1)


def binary_focal(outputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """The focal loss of each label, averaged over the labels of one image."""
    outputs = outputs.float()
    plain = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    p = torch.sigmoid(outputs)
    missed = torch.where(targets > 0.5, 1 - p, p)
    return (missed**gamma * plain).mean(dim=1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """(output - target)^2 for a single output."""
    return (outputs.float()[:, 0] - targets) ** 2
