"""What is measured of a model's outputs, by task; all by torchmetrics, which also reduces over processes."""

from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fourfold.imports import without
from fourfold.scores import sign

_signals = ModuleType("scipy.signal")  # of which it wants to know whether they have this name
_signals.hamming = None  # type: ignore[attr-defined]
_drawing, _axes, _pyplot = (ModuleType(f"matplotlib{part}") for part in ("", ".axes", ".pyplot"))  # and of these some types
vars(_axes).update(Axes=object)
vars(_pyplot).update(Figure=object, style=SimpleNamespace(context=lambda style: lambda draw: draw))
vars(_drawing).update(axes=_axes, pyplot=_pyplot, colors=SimpleNamespace(Colormap=object), __path__=[])
with (  # of which the signals take three quarters of a second, the drawing a quarter
    without("scipy.signal", _signals),
    without("matplotlib", _drawing, _axes, _pyplot),
):
    from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassCalibrationError,
        MulticlassConfusionMatrix,
        MulticlassF1Score,
        MultilabelAccuracy,
        MultilabelAveragePrecision,
        MultilabelF1Score,
    )
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_f1_score,
    )

CONFUSION_LIMIT = 100  # classes
BINS = 15  # of confidence


def create(task: str, num_outputs: int) -> MetricCollection:
    """The metrics of a task, accumulated batch by batch.

    Classification: acc, balanced_acc (mean recall over the classes), macro_f1, ece (expected calibration error, 15 bins,
    Guo et al. 2017, arXiv 1706.04599), and the confusion matrix [K, K] (rows are true classes) up to 100 classes.
    Multilabel: acc (per label at 0.5), macro_f1, mean_ap. Regression: mae, rmse, r2. All but the errors lie in 0 to 1.
    """
    if task == "regression":
        return MetricCollection({"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": R2Score()})
    if task == "multilabel":
        return MetricCollection(
            {
                "acc": MultilabelAccuracy(num_outputs),
                "macro_f1": MultilabelF1Score(num_outputs),
                "mean_ap": MultilabelAveragePrecision(num_outputs),
            }
        )
    members: dict[str, Metric | MetricCollection] = {
        "acc": MulticlassAccuracy(num_outputs, average="micro", validate_args=False),
        "balanced_acc": MulticlassAccuracy(num_outputs, average="macro", validate_args=False),
        "macro_f1": MulticlassF1Score(num_outputs, average="macro", validate_args=False),
        "ece": MulticlassCalibrationError(num_outputs, n_bins=BINS, validate_args=False),
    }
    if num_outputs <= CONFUSION_LIMIT:
        members["confusion"] = MulticlassConfusionMatrix(num_outputs, validate_args=False)
    return MetricCollection(members)


def update(metrics: MetricCollection, task: str, outputs: Tensor, targets: Tensor) -> None:
    """Add one batch: outputs [N, K] as logits (regression: [N, 1] values)."""
    outputs = outputs.float()
    if task == "regression":
        metrics.update(outputs[:, 0], targets)
    elif task == "multilabel":
        metrics.update(torch.sigmoid(outputs), targets.long())
    else:
        metrics.update(torch.softmax(outputs, dim=1), targets)


def values(metrics: MetricCollection, spread: float) -> dict[str, Any]:
    """What was measured, as plain numbers and lists.

    Args:
        spread: Of a regression's target, in which outputs and targets were told; errors are given in the target's own unit.
    """
    found = {name: value.tolist() for name, value in metrics.compute().items()}
    return {name: value * spread if name in ("mae", "rmse") else value for name, value in found.items()}


def of_many(outputs: Tensor, targets: Tensor) -> list[dict[str, float]]:
    """What `create` and `update` measure of a classifier but for the confusion matrix, of many at once.

    Args:
        outputs: Logits [classifiers, N, K].
        targets: Classes [classifiers, N].
    """
    sure = torch.softmax(outputs.float(), dim=2)
    chosen, classes = sure.argmax(dim=2), outputs.shape[2]
    how: dict[str, Any] = {"multidim_average": "samplewise", "validate_args": False}
    bins: dict[str, Any] = {"num_classes": classes, "n_bins": BINS, "validate_args": False}
    values = {
        "acc": multiclass_accuracy(chosen, targets, classes, "micro", **how),
        "balanced_acc": multiclass_accuracy(chosen, targets, classes, "macro", **how),
        "ece": torch.stack([multiclass_calibration_error(*pair, **bins) for pair in zip(sure, targets, strict=True)]),
        "macro_f1": multiclass_f1_score(chosen, targets, classes, average="macro", **how),
    }
    columns = torch.stack([*values.values()], dim=1).tolist()  # one look at the device
    return [dict(zip(values, column, strict=True)) for column in columns]


def score(row: Mapping[str, float], monitor: str) -> float:
    """The monitored value with its sign turned so that more is better."""
    return sign(monitor.partition("/")[2]) * row[monitor]
