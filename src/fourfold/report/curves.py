"""Learning curves: the training loss and the validation score by epoch, a band of one standard deviation over seeds."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fourfold.report.canvas import PALETTE, Frame, Kind, color, lines, marker
from fourfold.report.wording import scaled
from fourfold.study.curves import curve
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study

LOSS_METRIC = Metric("loss")


def draw_loss(axes: Axes, place: Place, study: Study) -> None:
    """Mean training loss by epoch at each strategy's chosen settings, on a logarithmic axis."""
    _draw(axes, place, study, "train/loss", LOSS_METRIC)
    if all(np.asarray(line.get_ydata()).min() > 0 for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("training loss")


def draw_validation(axes: Axes, place: Place, study: Study) -> None:
    """Mean validation score by epoch at each strategy's chosen settings."""
    _draw(axes, place, study, f"val/{place.metric.name}", place.metric)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(f"validation {place.metric.label}" + (" (%)" if place.metric.percent else ""))


def _draw(axes: Axes, place: Place, study: Study, key: str, metric: Metric) -> None:
    for cell in place.cells:
        found = curve(cell.chosen.runs, key)
        if found is None or not any(math.isfinite(value.mean) for value in found.values):
            continue
        means = [scaled(value.mean, metric) for value in found.values]
        spreads = [scaled(value.std or 0.0, metric) for value in found.values]
        line = color(study, cell.strategy)
        few = len(means) < 8
        axes.plot(
            found.epochs, means, color=line, linewidth=1.3, marker=marker(study, cell.strategy) if few else None, markersize=3.6
        )
        low = [max(mean - spread, 0.2 * mean) for mean, spread in zip(means, spreads, strict=True)]  # a loss stays above zero
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(found.epochs, low, high, color=line, alpha=0.16, linewidth=0)
    axes.grid(axis="y", color=PALETTE["rule"], linewidth=0.6)
    axes.tick_params(axis="y", labelcolor=PALETTE["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.03, y=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")


def _frame(place: Place) -> Frame:
    return Frame(height=1.9, left=0.55, right=0.1)


def _recorded(place: Place, key: str) -> bool:
    return any(curve(cell.chosen.runs[:1], key) is not None for cell in place.cells)


LOSS = Kind(draw_loss, _frame, lambda place: _recorded(place, "train/loss"), lines)
VALIDATION = Kind(draw_validation, _frame, lambda place: _recorded(place, f"val/{place.metric.name}"), lines)
