"""Losses against torch's own and naive forms."""

import pytest
import torch
from torch.nn import functional

from fourfold import losses
from fourfold.config import LossConfig

OUTPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 1])
HOT = functional.one_hot(CLASSES, 3).float()


def loss(name: str = "auto", task: str = "classification", weights: torch.Tensor | None = None, **changes) -> losses.Loss:
    return losses.create(
        LossConfig(**{"name": name, "label_smoothing": 0.0, "class_weights": "none", "gamma": 2.0, **changes}), task, weights
    )


def test_every_loss_gives_one_value_per_image() -> None:
    assert loss()(OUTPUTS, CLASSES).shape == (6,)
    assert loss("focal")(OUTPUTS, CLASSES).shape == (6,)
    assert loss(task="multilabel")(OUTPUTS, HOT).shape == (6,)
    assert loss("focal", "multilabel")(OUTPUTS, HOT).shape == (6,)
    assert loss(task="regression")(OUTPUTS[:, :1], torch.ones(6)).shape == (6,)


def test_means_equal_torch() -> None:
    assert loss(label_smoothing=0.1)(OUTPUTS, CLASSES).mean() == functional.cross_entropy(OUTPUTS, CLASSES, label_smoothing=0.1)
    torch.testing.assert_close(
        loss(task="multilabel")(OUTPUTS, HOT).mean(), functional.binary_cross_entropy_with_logits(OUTPUTS, HOT)
    )
    torch.testing.assert_close(
        loss(task="regression")(OUTPUTS[:, :1], torch.ones(6)).mean(), functional.mse_loss(OUTPUTS[:, 0], torch.ones(6))
    )


def test_soft_targets_equal_hard_ones() -> None:
    torch.testing.assert_close(loss()(OUTPUTS, HOT), loss()(OUTPUTS, CLASSES))


def test_focal_without_gamma_is_cross_entropy_and_with_it_forgives_the_easy() -> None:
    torch.testing.assert_close(loss("focal", gamma=0.0)(OUTPUTS, CLASSES), loss()(OUTPUTS, CLASSES))
    torch.testing.assert_close(loss("focal", "multilabel", gamma=0.0)(OUTPUTS, HOT), loss(task="multilabel")(OUTPUTS, HOT))
    p = torch.softmax(OUTPUTS, 1)[torch.arange(6), CLASSES]
    torch.testing.assert_close(loss("focal")(OUTPUTS, CLASSES), -((1 - p) ** 2) * p.log())


def test_class_weights_multiply_the_loss_of_their_class() -> None:
    weights = torch.tensor([2.0, 0.5, 1.0])
    for name in ("auto", "focal"):
        assert loss(name, weights=weights)(OUTPUTS, CLASSES) == pytest.approx(loss(name)(OUTPUTS, CLASSES) * weights[CLASSES])
