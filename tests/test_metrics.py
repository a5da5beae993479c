"""Metrics against scikit-learn and naive forms."""

import numpy
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from fourfold import metrics
from fourfold.scores import HEADLINE, sign

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 4, generator=G)
CLASSES = torch.randint(0, 4, (60,), generator=G)


def measured(task: str, outputs: torch.Tensor, targets: torch.Tensor) -> dict:
    collection = metrics.create(task, outputs.shape[1])
    for part in range(0, len(outputs), 7):  # in uneven batches
        metrics.update(collection, task, outputs[part : part + 7], targets[part : part + 7])
    return {name: value.tolist() for name, value in collection.compute().items()}


def test_classification_equals_scikit_learn() -> None:
    got = measured("classification", LOGITS, CLASSES)
    guesses = LOGITS.argmax(1)
    assert got["acc"] == pytest.approx(accuracy_score(CLASSES, guesses))
    assert got["balanced_acc"] == pytest.approx(balanced_accuracy_score(CLASSES, guesses))
    assert got["macro_f1"] == pytest.approx(f1_score(CLASSES, guesses, average="macro"))
    assert got["confusion"] == confusion_matrix(CLASSES, guesses).tolist()


@pytest.mark.parametrize("classes", [2, 5])  # of five one is never the true one, and one never chosen
def test_of_many_classifiers_each_has_what_it_has_alone(classes: int) -> None:
    outputs = torch.randn(3, 60, classes, generator=G)
    targets = torch.randint(0, min(classes, 4), (3, 60), generator=G)
    outputs[1, :, 0] -= 100
    outputs[2] *= 50
    for found, logits, truth in zip(metrics.of_many(outputs, targets), outputs, targets, strict=True):
        alone = measured("classification", logits, truth)
        del alone["confusion"]
        assert list(found) == list(alone)
        assert found == pytest.approx(alone, abs=1e-6)


def test_calibration_error_equals_its_definition() -> None:
    sure, guesses = torch.softmax(LOGITS, 1).max(1)
    bins = numpy.minimum((sure.numpy() * 15).astype(int), 14)
    right = (guesses == CLASSES).numpy()
    expected = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - sure.numpy()[bins == b].mean()) for b in numpy.unique(bins)
    )
    assert measured("classification", LOGITS, CLASSES)["ece"] == pytest.approx(expected, abs=1e-6)


def test_multilabel_equals_scikit_learn() -> None:
    targets = (torch.rand(60, 4, generator=G) > 0.5).float()
    got = measured("multilabel", LOGITS, targets)
    assert got["macro_f1"] == pytest.approx(f1_score(targets, LOGITS > 0, average="macro"))
    assert got["mean_ap"] == pytest.approx(average_precision_score(targets, LOGITS, average="macro"), abs=1e-6)


def test_errors_are_in_the_unit_of_the_target() -> None:
    """Also where the target varies by less than torchmetrics believes, or is larger than float32 knows by one."""
    told, truth = torch.tensor([[0.5], [-1.0], [1.5]]), torch.tensor([1.0, -1.0, 0.5])
    for unit in (1e-6, 1.0, 1e8):
        collection = metrics.create("regression", 1)
        metrics.update(collection, "regression", told, truth)
        got = metrics.values(collection, unit)
        assert got == pytest.approx({"mae": 0.5 * unit, "rmse": (1.25 / 3) ** 0.5 * unit, "r2": 1 - 1.25 / (13 / 6)}, rel=1e-5)


def test_regression_equals_scikit_learn() -> None:
    values, truth = LOGITS[:, :1], LOGITS[:, 0] + 0.3 * LOGITS[:, 1]
    got = measured("regression", values, truth)
    assert got["mae"] == pytest.approx(mean_absolute_error(truth, values), rel=1e-5)
    assert got["rmse"] == pytest.approx(root_mean_squared_error(truth, values), rel=1e-5)
    assert got["r2"] == pytest.approx(r2_score(truth, values[:, 0]), rel=1e-5)


def test_a_score_always_grows_with_quality() -> None:
    assert metrics.score({"val/acc": 0.9}, "val/acc") > metrics.score({"val/acc": 0.8}, "val/acc")
    assert metrics.score({"val/rmse": 0.1}, "val/rmse") > metrics.score({"val/rmse": 0.2}, "val/rmse")


def test_confusion_is_left_out_above_its_limit() -> None:
    assert "confusion" not in metrics.create("classification", metrics.CONFUSION_LIMIT + 1)


@pytest.mark.parametrize("task", HEADLINE)
def test_the_direction_of_every_metric_is_torchmetrics_own(task: str) -> None:
    collection = metrics.create(task, 3)
    assert HEADLINE[task] in collection
    for name, metric in collection.items():
        if metric.higher_is_better is not None:  # the confusion matrix has none
            assert (sign(name) > 0) is metric.higher_is_better
