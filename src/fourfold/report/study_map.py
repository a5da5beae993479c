"""The map of a study: every data set at its measured similarity and size, the quadrant it was meant for, and who won there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fourfold.config import PlaceConfig
from fourfold.placement import Placement
from fourfold.report.canvas import PALETTE, WIDTH, color, inline, marker, styled, svg
from fourfold.report.wording import headline, lies, lift_told
from fourfold.study.quadrants import SIMILARITIES, SIZES, Place, Study

WIDE = 5.6  # inches, on a page; on a telephone it is as wide as any panel
LEFT, RIGHT, TOP, BOTTOM = 0.52, 0.12, 0.08, 0.42  # inches around the axes
LINE, LETTER = 0.13, 0.057  # inches: a label's line, and one of its letters
MARK = 0.08  # inches from the middle of a mark to its edge
FAR = 0.34  # inches above or below a mark, from which a line leads to its label
LOWEST = -0.5  # lift; what lies further left is drawn here
APART = 0.3  # powers of ten between two numbers beside the axis
ROOM = 4.0  # times the smallest and the largest size, below and above
NO_WINNER = "no single winner"

Box = tuple[float, float, float, float]  # left, bottom, right, top, in inches from the corner of the axes


@dataclass(frozen=True)
class Point:
    """A place on the map."""

    place: Place
    placement: Placement
    lift: float
    low: float
    high: float

    @property
    def size(self) -> float:
        return self.placement.size.per_class

    @property
    def label(self) -> tuple[str, ...]:
        """Its data set, and the quadrant that the study gave it."""
        declared = self.place.title if self.place.quadrant else ""
        return tuple(line for line in (" ".join([self.place.dataset, *self.place.variant]), declared) if line)


@dataclass(frozen=True)
class Ground:
    """The axes: which lift and which size lies where, in inches."""

    width: float
    height: float
    lifts: tuple[float, float]
    sizes: tuple[float, float]
    levels: PlaceConfig

    def at(self, lift: float, size: float) -> tuple[float, float]:
        (low, high), (bottom, top) = self.lifts, self.sizes
        across = (min(high, max(low, lift)) - low) / (high - low)
        return across * self.width, math.log(size / bottom) / math.log(top / bottom) * self.height


def points(study: Study) -> list[Point]:
    """The places whose lift is known, from different to similar."""
    found = []
    for place in study.places:
        lift = place.placement.lift if place.placement else None
        if place.placement and lift and lift.value is not None and lift.low is not None and lift.high is not None:
            found.append(Point(place, place.placement, lift.value, lift.low, lift.high))
    return sorted(found, key=lambda point: point.lift)


def winners(study: Study) -> list[str]:
    """The strategies that win somewhere on the map, in the order of the study's."""
    won = {point.place.verdict.winner for point in points(study)}
    return [strategy for strategy in study.strategies if strategy in won]


def draw_map(axes: Axes, study: Study, width: float, height: float) -> None:
    """Lift with its interval across, images per class up, on a scale of powers; lines where the quadrants begin.

    Args:
        axes: Of that size, in inches.
        study: With a point at least.
    """
    shown = points(study)
    levels = shown[0].placement.levels
    sizes = [*(point.size for point in shown), levels.small, levels.large]
    low = max(LOWEST, min(0.0, *(point.low for point in shown)) - 0.04)
    ground = Ground(width, height, (low, 1.03), (min(sizes) / ROOM, max(sizes) * ROOM), levels)
    axes.set_yscale("log")
    axes.set_xlim(ground.lifts)
    axes.set_ylim(ground.sizes)
    _thresholds(axes, ground, sorted({point.size for point in shown}))
    taken = [_corner(axes, ground, *corner) for corner in product(SIMILARITIES, SIZES)]
    for point in shown:
        _mark(axes, point, study, ground)
        x, y = ground.at(point.lift, point.size)
        left, right = ground.at(point.low, point.size)[0], ground.at(point.high, point.size)[0]
        taken += [(x - MARK, y - MARK, x + MARK, y + MARK), (left, y - 0.02, right, y + 0.02)]
    for point in shown:
        taken.append(_label(axes, point, ground, taken))


def _thresholds(axes: Axes, ground: Ground, sizes: Sequence[float]) -> None:
    levels, low = ground.levels, ground.lifts[0]
    for draw, values in ((axes.axvline, (levels.different, levels.similar)), (axes.axhline, (levels.small, levels.large))):
        for value in values:
            draw(value, color=PALETTE["muted"], linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
    ticks = (-0.5, -0.25, 0, 0.25, levels.different, levels.similar, 1)
    steps: list[float] = [levels.small, levels.large]
    for size, apart in (*((size, APART) for size in sizes), *((10.0**power, 2.5 * APART) for power in range(7))):
        if ground.sizes[0] <= size <= ground.sizes[1] and all(abs(math.log10(size / step)) > apart for step in steps):
            steps.append(size)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick >= low]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}".replace("-", "−")))
    axes.yaxis.set_major_locator(FixedLocator(steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.tick_params(axis="y", labelcolor=PALETTE["muted"])
    axes.set_xlabel("measured similarity: lift, with its 95 % interval")
    axes.set_ylabel("images per class")
    for side in axes.spines.values():
        side.set(visible=True, color=PALETTE["rule"])


def _corner(axes: Axes, ground: Ground, similarity: str, size: str) -> Box:
    """Write the name of a quadrant at its outer edge; gives the room that it takes."""
    levels, (low, high) = ground.levels, ground.lifts
    ends = {
        "different": (low, levels.different),
        "middle": (levels.different, levels.similar),
        "similar": (levels.similar, high),
    }
    left, right = (ground.at(end, 1.0)[0] for end in ends[similarity])
    large = size == "large"
    y = ground.height - 0.07 if large else 0.07
    text = f"{similarity}\n{size}"
    axes.text(
        (left + right) / 2 / ground.width, y / ground.height, text, transform=axes.transAxes, ha="center", linespacing=1.15,
        va="top" if large else "bottom", color=PALETTE["muted"], fontsize=7.5,
    )  # fmt: skip
    half = 0.5 * LETTER * len(similarity)
    box = (left + right) / 2 - half, (left + right) / 2 + half
    return (box[0], y - 2 * LINE, box[1], y) if large else (box[0], y, box[1], y + 2 * LINE)


def _mark(axes: Axes, point: Point, study: Study, ground: Ground) -> None:
    """Colour and shape of the strategy that won, a hollow ring where none did; what is misplaced is ringed once more."""
    low, high = ground.lifts
    winner = point.place.verdict.winner
    shade = color(study, winner) if winner else PALETTE["ink"]
    ends = [min(high, max(low, end)) for end in (point.low, point.high)]
    axes.plot(ends, [point.size] * 2, color=shade, linewidth=1.0, alpha=0.75, solid_capstyle="butt", zorder=2)
    spot = [max(low, point.lift)], [point.size]
    if point.place.misplaced:
        axes.plot(*spot, "o", markersize=12.5, color=PALETTE["textbook"], markerfacecolor="none", markeredgewidth=1.4, zorder=3)
    face = shade if winner else PALETTE["paper"]
    axes.plot(*spot, marker(study, winner) if winner else "o", markersize=6.5, color=shade, markerfacecolor=face, zorder=4)


def _label(axes: Axes, point: Point, ground: Ground, taken: Sequence[Box]) -> Box:
    """Write a point's label where it covers least, near by; gives the room that it takes."""
    x, y = ground.at(point.lift, point.size)
    width, height = LETTER * max(map(len, point.label)), LINE * len(point.label)
    beside = MARK + 0.05 if not point.place.misplaced else MARK + 0.09
    spots = [
        (x + across - width / 2, y + up - height / 2, up)
        for across in (0.0, 0.35 * width, -0.35 * width, min(0.0, ground.width - 0.04 - x - width / 2))
        for away in (0.0, 0.16, 0.34, 0.52, 0.7)
        for up in (beside + height / 2 + away, -beside - height / 2 - away)
    ] + [(x + beside, y - height / 2, 0.0), (x - beside - width, y - height / 2, 0.0)]

    def cost(spot: tuple[float, float, float]) -> float:
        left, bottom, up = spot
        box = left, bottom, left + width, bottom + height
        outside = max(0.0, -left) + max(0.0, box[2] - ground.width) + max(0.0, -bottom) + max(0.0, box[3] - ground.height)
        distance = math.hypot(left + width / 2 - x, up)
        return 100 * sum(_overlap(box, each) for each in taken) + 100 * outside + distance

    left, bottom, up = min(spots, key=cost)
    centre = left + width / 2
    if abs(up) > beside + height / 2 + FAR - 0.1:
        ends = [y + math.copysign(beside, up), up + y - math.copysign(height / 2, up)]
        axes.plot(
            [x / ground.width, centre / ground.width], [each / ground.height for each in ends], color=PALETTE["muted"],
            linewidth=0.5, transform=axes.transAxes, zorder=2,
        )  # fmt: skip
    for line, text in enumerate(point.label):
        plain = PALETTE["ink"] if line == 0 else PALETTE["muted"]
        axes.text(
            centre / ground.width, (bottom + height - LINE * (line + 0.5)) / ground.height, text, transform=axes.transAxes,
            ha="center", va="center", fontsize=7.5, color=PALETTE["textbook"] if line and point.place.misplaced else plain,
            zorder=5, bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    return left, bottom, left + width, bottom + height


def _overlap(one: Box, other: Box) -> float:
    """Square inches that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0


def figure(study: Study, width: float, key: float = 0.0) -> Figure:
    """The map alone; call it within `styled`.

    Args:
        width: Inches.
        key: Inches that are left free below it.
    """
    height = 0.62 * width + 0.3 if width > WIDTH else 1.05 * width
    inner = width - LEFT - RIGHT, height - TOP - BOTTOM
    drawn = Figure(figsize=(width, height + key))
    box = LEFT / width, (BOTTOM + key) / (height + key), inner[0] / width, inner[1] / (height + key)
    draw_map(drawn.add_axes(box), study, *inner)
    return drawn


def sheet(study: Study) -> Figure:
    """The map with its key, for a paper; call it within `styled`."""
    drawn = figure(study, WIDE, key=0.3)
    handles = [_handle(strategy, color(study, strategy), marker(study, strategy), filled=True) for strategy in winners(study)]
    handles.append(_handle(NO_WINNER, PALETTE["ink"], "o", filled=False))
    drawn.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1.2)
    return drawn


def _handle(label: str, shade: str, shape: str, *, filled: bool) -> Line2D:
    face = shade if filled else PALETTE["paper"]
    return Line2D([], [], color=shade, marker=shape, markerfacecolor=face, linestyle="none", label=label)


def panels(study: Study) -> tuple[str, str]:
    """The map as two `<svg>` elements, wide and narrow; empty where nothing has been measured."""
    if not points(study):
        return "", ""
    told = "; ".join(described(points(study)))
    with styled():
        return (
            inline(svg(figure(study, WIDE)), "map", f"map of the data sets: {told}"),
            inline(svg(figure(study, WIDTH)), "smallmap", f"map of the data sets: {told}"),
        )


def described(shown: Iterable[Point]) -> list[str]:
    """What a screen reader says of each point."""
    return [
        f"{' '.join(point.label)}: lift {lift_told(point.placement.lift)}, {point.size:,.4g} images per class, "
        f"measured as {lies(point.placement)}, {headline(point.place)}"
        for point in shown
    ]
