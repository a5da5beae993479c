"""By which metric runs are compared, and which way is better; without torch, so that a report needs none."""

HEADLINE = {"classification": "acc", "multilabel": "macro_f1", "regression": "rmse"}  # of each task
LESS_IS_BETTER = frozenset({"loss", "ece", "mae", "rmse", "seconds"})


def sign(metric: str) -> int:
    """+1 where more of a metric is better, -1 where less is."""
    return -1 if metric in LESS_IS_BETTER else 1
