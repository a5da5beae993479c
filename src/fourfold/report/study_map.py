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
from fourfold.report.positions import measured
from fourfold.report.wording import headline, lies, lift_told
from fourfold.study.quadrants import SIMILARITIES, SIZES, Place, Study

WIDE = 5.6  # inches, on a page; on a telephone it is as wide as any panel
LEFT, RIGHT, TOP, BOTTOM = 0.52, 0.12, 0.08, 0.42  # inches around the axes
LINE, LETTER = 0.13, 0.057  # inches: a label's line, and one of its letters
MARK = 0.08  # inches from the middle of a mark to its edge
COVERED = 0.006  # square inches, beyond which the names give way to numbers
LOWEST = -0.5  # lift; what lies further left is drawn here
APART = 0.3  # powers of ten between two numbers beside the axis
ROOM = 4.0  # times the smallest and the largest size, below and above

Box = tuple[float, float, float, float]  # left, bottom, right, top, in inches from the corner of the axes


@dataclass(frozen=True)
class Point:
    """A place on the map."""

    place: Place
    placement: Placement
    number: int  # of its line in the table of `positions`
    lift: float
    low: float
    high: float
    label: tuple[str, ...]  # its data set, and the quadrant that the study gave it

    @property
    def size(self) -> float:
        return self.placement.size.per_class


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
    for number, (place, placement) in enumerate(measured(study), 1):
        lift = placement.lift
        if lift.value is not None and lift.low is not None and lift.high is not None:
            found.append(Point(place, placement, number, lift.value, lift.low, lift.high, _told(place, study)))
    return sorted(found, key=lambda point: point.lift)


def _told(place: Place, study: Study) -> tuple[str, ...]:
    model = [place.model] if len({other.model for other in study.places}) > 1 else []
    name = ", ".join([place.dataset, *model, *place.variant])
    return (name, place.title) if place.quadrant else (name,)


def winners(study: Study) -> list[str]:
    """The strategies that win somewhere on the map, in the order of the study's."""
    won = {point.place.verdict.winner for point in points(study)}
    return [strategy for strategy in study.strategies if strategy in won]


def draw_map(axes: Axes, study: Study, width: float, height: float) -> bool:
    """Lift with its interval across, images per class up, on a scale of powers; lines where the quadrants begin.

    Args:
        axes: Of that size, in inches.
        study: With a point at least.

    Returns:
        Whether the points are numbered, since their names would cover each other.
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
    labels = arranged(shown, [point.label for point in shown], ground, taken)
    numbered = max(label.covers for label in labels) > COVERED
    if numbered:
        labels = arranged(shown, [(str(point.number),) for point in shown], ground, taken)
    for point, label in zip(shown, labels, strict=True):
        _write(axes, point, label, ground)
    return numbered


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


@dataclass(frozen=True)
class Label:
    """Where the label of a point is written."""

    lines: tuple[str, ...]
    box: Box
    covers: float  # square inches of other things
    led: bool  # far enough away for a line that leads to it


def arranged(shown: Sequence[Point], texts: Sequence[tuple[str, ...]], ground: Ground, taken: Sequence[Box]) -> list[Label]:
    """Labels near their points, one after the other where each covers least of what is `taken` and of those before it."""
    labels: list[Label] = []
    for point, lines in zip(shown, texts, strict=True):
        labels.append(_arranged(point, lines, ground, [*taken, *(label.box for label in labels)]))
    return labels


def _arranged(point: Point, lines: tuple[str, ...], ground: Ground, taken: Sequence[Box]) -> Label:
    x, y = ground.at(point.lift, point.size)
    width, height = LETTER * max(map(len, lines)), LINE * len(lines)
    beside = MARK + 0.05 if not point.place.misplaced else MARK + 0.09
    middles = [
        (across, up)
        for across in (0.0, 0.35 * width, -0.35 * width, min(0.0, ground.width - 0.04 - x - width / 2))
        for away in (0.0, 0.16, 0.34, 0.52, 0.7)
        for up in (beside + height / 2 + away, -beside - height / 2 - away)
    ] + [(beside + width / 2, 0.0), (-beside - width / 2, 0.0)]

    def box(middle: tuple[float, float]) -> Box:
        across, up = middle
        return x + across - width / 2, y + up - height / 2, x + across + width / 2, y + up + height / 2

    def covers(each: Box) -> float:
        outside = max(0.0, -each[0]) + max(0.0, each[2] - ground.width) + max(0.0, -each[1]) + max(0.0, each[3] - ground.height)
        return sum(_overlap(each, other) for other in taken) + outside

    best = min(middles, key=lambda middle: 100 * covers(box(middle)) + math.hypot(*middle))
    return Label(lines, box(best), covers(box(best)), abs(best[1]) > beside + height / 2 + 0.24)


def _write(axes: Axes, point: Point, label: Label, ground: Ground) -> None:
    x, y = ground.at(point.lift, point.size)
    left, bottom, right, top = label.box
    centre = (left + right) / 2
    if label.led:
        ends = [y + math.copysign(MARK, bottom - y), bottom if bottom > y else top]
        axes.plot(
            [x / ground.width, centre / ground.width], [each / ground.height for each in ends], color=PALETTE["muted"],
            linewidth=0.5, transform=axes.transAxes, zorder=2,
        )  # fmt: skip
    for line, text in enumerate(label.lines):
        plain = PALETTE["ink"] if line == 0 else PALETTE["muted"]
        marked = point.place.misplaced and line == len(label.lines) - 1
        axes.text(
            centre / ground.width, (top - LINE * (line + 0.5)) / ground.height, text, transform=axes.transAxes, ha="center",
            va="center", fontsize=7.5, color=PALETTE["textbook"] if marked else plain, zorder=5,
            bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _overlap(one: Box, other: Box) -> float:
    """Square inches that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0


def figure(study: Study, width: float, key: float = 0.0) -> tuple[Figure, bool]:
    """The map alone, and whether its points are numbered; call it within `styled`.

    Args:
        study: With a point at least.
        width: Inches.
        key: Inches that are left free below it.
    """
    height = 0.62 * width + 0.3 if width > WIDTH else 1.05 * width
    inner = width - LEFT - RIGHT, height - TOP - BOTTOM
    drawn = Figure(figsize=(width, height + key))
    box = LEFT / width, (BOTTOM + key) / (height + key), inner[0] / width, inner[1] / (height + key)
    numbered = draw_map(drawn.add_axes(box), study, *inner)
    return drawn, numbered


def sheet(study: Study) -> Figure:
    """The map with its key, for a paper; call it within `styled`."""
    drawn, numbered = figure(study, WIDE, key=0.3)
    shown = sorted(points(study), key=lambda point: point.number)
    if numbered:  # beside a page stands a table
        rows = math.ceil(len(shown) / 2)
        drawn, _ = figure(study, WIDE, key=0.4 + 0.15 * rows)
        for index, point in enumerate(shown):
            x, y = (LEFT + (index // rows) * WIDE / 2) / WIDE, (0.4 + 0.15 * (rows - 1 - index % rows)) / drawn.get_figheight()
            drawn.text(x, y, f"{point.number}  {', '.join(point.label)}", fontsize=7, va="center")
    handles = [_handle(strategy, color(study, strategy), marker(study, strategy), filled=True) for strategy in winners(study)]
    if any(point.place.verdict.winner is None for point in shown):
        handles.append(_handle("no single winner", PALETTE["ink"], "o", filled=False))
    if any(point.place.misplaced for point in shown):
        handles.append(_handle("not where the study put it", PALETTE["textbook"], "o", filled=False))
    drawn.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1.2)
    return drawn


def _handle(label: str, shade: str, shape: str, *, filled: bool) -> Line2D:
    face = shade if filled else PALETTE["paper"]
    return Line2D([], [], color=shade, marker=shape, markerfacecolor=face, linestyle="none", label=label)


def panels(study: Study) -> tuple[str, str, bool]:
    """The map as two `<svg>` elements, wide and narrow, and whether one is numbered; empty where nothing has been measured."""
    if not points(study):
        return "", "", False
    told = f"map of the data sets: {'; '.join(described(points(study)))}"
    with styled():
        (wide, crowded), (narrow, numbered) = figure(study, WIDE), figure(study, WIDTH)
        return inline(svg(wide), "map", told), inline(svg(narrow), "smallmap", told), crowded or numbered


def described(shown: Iterable[Point]) -> list[str]:
    """What a screen reader says of each point."""
    return [
        f"{' '.join(point.label)}: lift {lift_told(point.placement.lift)}, {point.size:,.4g} images per class, "
        f"measured as {lies(point.placement)}, {headline(point.place)}"
        for point in shown
    ]
