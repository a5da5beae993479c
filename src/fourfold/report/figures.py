"""The pictures of a quadrant's scores: test scores, differences to the chosen strategy, and learning rates."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fourfold.report.canvas import PALETTE, Frame, Kind, color, lines, marker
from fourfold.report.wording import scaled, short, signed
from fourfold.study.cells import Cell
from fourfold.study.quadrants import Place, Study

RIGHT = 0.58  # inches beside the axis, for a row's number and the diamond of the textbook's choice
LARGEST_SHOWN = 20.0  # points; the axis of differences ends here at the latest, what lies beyond gets an arrow
LINE = 22  # characters of a strategy's label before it breaks


def draw_scores(axes: Axes, place: Place, study: Study) -> None:
    """Test score of each strategy: a bar for the mean, a line for the 95 % interval, a ring for each run."""
    cells, metric = place.cells, place.metric
    values = [scaled(run.test[metric.name], metric) for cell in cells for run in cell.chosen.runs]
    low = min(0.0, *values)
    high = 100.0 if metric.percent else max(0.0, *values) * 1.06 or 1.0
    for row, cell in enumerate(cells):
        _bar(axes, row, cell, place, (low, high))
    if place.chance is not None:
        axes.axvline(scaled(place.chance, metric), color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    label_rows(axes, place, [cell.strategy for cell in cells])
    axes.set_xlim(low, high)
    if metric.percent:
        axes.xaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    axes.set_xlabel(
        f"test {metric.label}" + (" (%)" if metric.percent else "") + ("" if metric.sign > 0 else ", less is better")
    )


def _bar(axes: Axes, row: int, cell: Cell, place: Place, limits: tuple[float, float]) -> None:
    metric, test = place.metric, cell.chosen.test
    mean = scaled(test.mean, metric)
    axes.barh(row, mean, height=0.56, color=PALETTE[role(cell.strategy, place)], zorder=2)
    if test.low is not None and test.high is not None:
        ends = [max(limits[0], scaled(test.low, metric)), min(limits[1], scaled(test.high, metric))]
        axes.plot(ends, [row, row], color=PALETTE["ink"], linewidth=1.1, solid_capstyle="butt", zorder=4, clip_on=False)
    runs = cell.chosen.runs
    for index, run in enumerate(runs):
        offset = 0.34 * (index / (len(runs) - 1) - 0.5) if len(runs) > 1 else 0.0
        score = scaled(run.test[metric.name], metric)
        (ring,) = axes.plot(score, row + offset, "o", color=PALETTE["ink"], markersize=2.4, zorder=5, clip_on=False)
        ring.set(markerfacecolor="none", markeredgewidth=0.55)
    weight = "bold" if cell.strategy == place.verdict.best else "normal"
    _beside(axes, row, short(test.mean, metric), weight)


def draw_differences(axes: Axes, place: Place, study: Study) -> None:
    """Paired difference on test of each strategy to the one that validation chose, with its 95 % interval."""
    metric, verdict = place.metric, place.verdict
    low, high = _difference_axis(place, study)
    axes.axvspan(-scaled(metric.margin, metric), scaled(metric.margin, metric), color=PALETTE["band"], linewidth=0, zorder=0)
    axes.axvline(0, color=PALETTE["chosen"], linewidth=1.2, zorder=1)
    axes.plot(0, 0, marker="D", markersize=4.5, color=PALETTE["chosen"], zorder=3)
    _beside(axes, 0, "chosen", "normal")
    for row, rival in enumerate(verdict.rivals, start=1):
        if rival.difference is None:
            continue
        value = rival.difference.estimate
        mean = scaled(value.mean, metric)
        shade = PALETTE[{"tied": "tied", "ahead": "chosen"}.get(rival.status, "muted")]
        if value.low is not None and value.high is not None:
            ends = [max(low, scaled(value.low, metric)), min(high, scaled(value.high, metric))]
            if ends[0] < ends[1]:
                axes.plot(ends, [row, row], color=shade, linewidth=1.6, solid_capstyle="butt", zorder=2)
        end = "<" if mean < low else ">" if mean > high else "o"
        axes.plot(min(high, max(low, mean)), row, marker=end, markersize=5, color=shade, zorder=3, clip_on=False)
        _beside(axes, row, signed(value.mean, metric), "normal")
    label_rows(axes, place, [verdict.best, *(rival.strategy for rival in verdict.rivals)])
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−").replace("+0", "0")))
    axes.set_xlabel("difference" + (" in points" if metric.percent else f" in {metric.label}, turned so that + is better"))


def _difference_axis(place: Place, study: Study) -> tuple[float, float]:
    """Both ends of the axis of differences: one for all panels in percent, each its own for quantities with a unit."""
    percent = place.metric.percent
    ends = [
        scaled(end, other.metric)
        for other in ([other for other in study.places if other.metric.percent] if percent else [place])
        for rival in other.verdict.rivals
        if rival.difference
        for end in (rival.difference.estimate.mean, rival.difference.estimate.low, rival.difference.estimate.high)
        if end is not None and math.isfinite(end)
    ]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if percent:
        return max(-LARGEST_SHOWN, min(low, -2.5)), min(LARGEST_SHOWN, max(high, 2.5))
    room = 0.08 * (max(high, 0.0) - min(low, 0.0)) or 1.0
    return min(low, 0.0) - room, max(high, 0.0) + room


def draw_learning_rates(axes: Axes, place: Place, study: Study) -> None:
    """Mean validation score over the learning rates, one line for each strategy; the chosen rate is ringed."""
    metric = place.metric
    for cell in place.cells:
        line = color(study, cell.strategy)
        best_at = {setting.lr: setting for setting in sorted(cell.settings, key=lambda each: metric.sign * each.val.mean)}
        settings = [best_at[lr] for lr in sorted(best_at)]
        scores = [scaled(setting.val.mean, metric) for setting in settings]
        axes.plot(
            [s.lr for s in settings], scores, color=line, marker=marker(study, cell.strategy), markersize=3.6, linewidth=1.2
        )
        axes.plot(
            cell.chosen.lr, scaled(cell.chosen.val.mean, metric), color=line, marker="o", markersize=8,
            markerfacecolor="none", clip_on=False,
        )  # fmt: skip
    axes.set_xscale("log")
    rates = sorted({setting.lr for cell in place.cells for setting in cell.settings})
    axes.xaxis.set_major_locator(FixedLocator(rates[:: math.ceil(len(rates) / 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", labelcolor=PALETTE["muted"])
    axes.grid(axis="y", color=PALETTE["rule"], linewidth=0.6)
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"validation {metric.label}" + (" (%)" if metric.percent else ""))


def role(strategy: str, place: Place) -> str:
    """chosen | tied | behind: the colour in which a strategy is shown."""
    verdict = place.verdict
    if strategy == verdict.best:
        return "chosen"
    return "tied" if strategy in verdict.contenders else "behind"


def label_rows(axes: Axes, place: Place, strategies: Sequence[str], *, mark: bool = True) -> None:
    """Label the rows, flush left, and `mark` the textbook's choice with a diamond."""
    axes.set_yticks(range(len(strategies)), [textwrap.fill(strategy, LINE) for strategy in strategies])
    axes.set_ylim(len(strategies) - 0.5, -0.5)
    axes.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
    axes.tick_params(axis="y", pad=72 * _label_width(place))
    textbook = place.verdict.textbook
    for row, (label, strategy) in enumerate(zip(axes.get_yticklabels(), strategies, strict=True)):
        label.set_horizontalalignment("left")
        if mark and textbook and strategy == textbook.strategy:
            inches = axes.bbox.width / axes.figure.dpi
            edge = 1 + (RIGHT - 0.06) / inches
            transform = axes.get_yaxis_transform()
            axes.plot(edge, row, marker="D", markersize=4, color=PALETTE["textbook"], clip_on=False, transform=transform)


def _label_width(place: Place) -> float:
    """Inches from the panel's left edge to its axis: the longest label."""
    return 0.1 + 0.063 * max(12, min(LINE, max(len(cell.strategy) for cell in place.cells)))


def _beside(axes: Axes, row: int, text: str, weight: str) -> None:
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center", ha="left", fontweight=weight)


def row_frame(place: Place, right: float = RIGHT) -> Frame:
    """The frame of a panel with one row for each strategy."""
    return Frame(height=0.5 + 0.27 * len(place.cells), left=_label_width(place), right=right)


def sweeps_learning_rate(place: Place) -> bool:
    """Whether a strategy was run at several rates."""
    return any(len({setting.lr for setting in cell.settings}) > 1 for cell in place.cells)


def _handles(study: Study, behind: str) -> list[Line2D]:
    words = {"chosen": "chosen on validation", "tied": "tied with it", behind: "behind"}
    handles = [Line2D([], [], color=PALETTE[name], linewidth=6, label=label) for name, label in words.items()]
    if any(place.verdict.textbook for place in study.places):
        diamond = Line2D(
            [], [], color=PALETTE["textbook"], marker="D", markersize=4, linestyle="none", label="the textbook's choice"
        )
        handles.append(diamond)
    return handles


SCORES = Kind(draw_scores, row_frame, lambda place: True, lambda study: _handles(study, "behind"))
DIFFERENCES = Kind(
    draw_differences, row_frame, lambda place: bool(place.verdict.rivals), lambda study: _handles(study, "muted")
)
LEARNING_RATES = Kind(draw_learning_rates, lambda place: Frame(height=2.1, left=0.5, right=0.1), sweeps_learning_rate, lines)
