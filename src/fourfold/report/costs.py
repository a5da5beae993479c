"""What a score costs: test score against trained parameters and against time, with the front of those that nothing beats."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fourfold.report.canvas import PALETTE, Frame, Kind, color, lines, marker
from fourfold.report.wording import count, duration, scaled
from fourfold.study.cells import Cell
from fourfold.study.quadrants import Place, Study


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, score) that none beats in both: cheapest first; of equal ones the first."""
    best, kept = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept


def draw_parameters(axes: Axes, place: Place, study: Study) -> None:
    """Test score against the number of parameters that learn."""
    _draw(axes, place, study, lambda cell: cell.params_trainable, count)
    axes.set_xlabel("parameters that learn")


def draw_hours(axes: Axes, place: Place, study: Study) -> None:
    """Test score against the time of one run at the chosen settings."""
    _draw(axes, place, study, lambda cell: cell.seconds, duration)
    axes.set_xlabel("time of one run")


def _draw(axes: Axes, place: Place, study: Study, cost: Callable[[Cell], float], told: Callable[[float], str]) -> None:
    metric = place.metric
    cells = [cell for cell in place.cells if cost(cell) > 0 and math.isfinite(cell.chosen.test.mean)]
    points = [(cost(cell), metric.sign * cell.chosen.test.mean) for cell in cells]
    undominated = front(points)
    if undominated:
        right = max(x for x, _ in points)
        steps = [(points[i][0], metric.sign * points[i][1]) for i in undominated]
        steps.append((right, steps[-1][1]))
        axes.step(
            [x for x, _ in steps], [scaled(y, metric) for _, y in steps], where="post", color=PALETTE["muted"], linewidth=0.9,
            linestyle=(0, (3, 2)), zorder=1,
        )  # fmt: skip
    for index, cell in enumerate(cells):
        test, line = cell.chosen.test, color(study, cell.strategy)
        mean = scaled(test.mean, metric)
        if test.low is not None and test.high is not None:
            ends = [scaled(test.low, metric), scaled(test.high, metric)]
            axes.plot([points[index][0]] * 2, ends, color=line, linewidth=0.9, alpha=0.6, zorder=2)
        filled = line if index in undominated else "none"
        axes.plot(
            points[index][0],
            mean,
            marker=marker(study, cell.strategy),
            color=line,
            markerfacecolor=filled,
            markersize=6,
            zorder=3,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if _decades(points) > 1.5 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    means = [scaled(cell.chosen.test.mean, metric) for cell in cells]
    room = 0.15 * (max(means) - min(means)) or 1.0
    axes.set_ylim(min(means) - room, max(means) + room)  # by the means: the interval of a few seeds would leave them no room
    axes.margins(x=0.12)
    axes.grid(color=PALETTE["rule"], linewidth=0.6)
    axes.tick_params(axis="y", labelcolor=PALETTE["muted"])
    axes.set_ylabel(f"test {metric.label}" + (" (%)" if metric.percent else ""))


def _decades(points: Sequence[tuple[float, float]]) -> float:
    costs = [x for x, _ in points]
    return math.log10(max(costs) / min(costs))


def _frame(place: Place) -> Frame:
    return Frame(height=2.0, left=0.5, right=0.1)


PARAMETERS = Kind(draw_parameters, _frame, lambda place: _priced(place, "params_trainable"), lines)
HOURS = Kind(draw_hours, _frame, lambda place: _priced(place, "seconds"), lines)


def _priced(place: Place, what: str) -> bool:
    """Whether there are two strategies or more to compare."""
    return sum(getattr(cell, what) > 0 and math.isfinite(cell.chosen.test.mean) for cell in place.cells) > 1
