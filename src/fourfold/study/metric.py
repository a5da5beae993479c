"""The one number by which a study compares: which metric, and which way is better."""

from collections.abc import Iterable
from dataclasses import dataclass

from fourfold.scores import HEADLINE, sign
from fourfold.study.results import Result

FRACTIONS = frozenset({"acc", "balanced_acc", "macro_f1", "mean_ap", "ece"})  # shown in percent
LABELS = {"acc": "accuracy", "balanced_acc": "balanced accuracy", "macro_f1": "macro F1", "mean_ap": "mean AP", "r2": "R²"}

POINT = 0.01  # of a fraction; below it a difference is called a tie whatever its interval


@dataclass(frozen=True)
class Metric:
    """A metric's name and how to read it."""

    name: str

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is: `sign * value` is better when larger."""
        return sign(self.name)

    @property
    def percent(self) -> bool:
        return self.name in FRACTIONS

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name.upper() if self.name in ("ece", "mae", "rmse") else self.name)

    @property
    def margin(self) -> float:
        """Differences smaller than this are ties: one point for fractions, none for quantities with a unit."""
        return POINT if self.percent else 0.0


def metric_of(results: Iterable[Result]) -> Metric:
    """The metric that the runs themselves monitored, or the usual one of their task.

    The usual one also where they monitored different metrics, the loss, or one that their test split was not measured by.
    """
    runs = list(results)
    monitored = {str(run.config.get("trainer", {}).get("monitor", "auto")).removeprefix("val/") for run in runs}
    name = monitored.pop() if len(monitored) == 1 else "auto"
    measured = all(name in run.val and name in run.test for run in runs)
    return Metric(HEADLINE[runs[0].task] if name in ("auto", "loss") or not measured else name)
