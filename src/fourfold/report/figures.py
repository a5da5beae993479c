"""The pictures of a report: small panels that stand in the page as SVG, and whole sheets as files.

Every panel is drawn by one function on matplotlib axes in the colours of `PALETTE`. In the page each colour becomes a CSS
variable, so a panel follows the page from light to dark; the sheets keep the colours as they are, on white.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fourfold.files import replacing, write_text
from fourfold.report.wording import heading, scaled, short, signed
from fourfold.study.cells import Cell
from fourfold.study.quadrants import SIMILARITIES, SIZES, Place, Study

# Colour-blind safe (after Okabe & Ito 2008), of middle tone; the page gives the same names other values in the dark.
PALETTE = {
    "ink": "#1c2024", "muted": "#646b73", "rule": "#dfe2e5", "band": "#dde7ec",
    "chosen": "#0b6e99", "tied": "#63a9c6", "behind": "#b4bbc2", "textbook": "#c2740a",
    "line1": "#0b6e98", "line2": "#d1690e", "line3": "#1a8f6a", "line4": "#a8508f", "line5": "#7a6ccf", "line6": "#9a8412",
    "line7": "#c24a4a", "line8": "#5f6b76",
}  # fmt: skip
MARKERS = "osD^vPX*"
WIDTH = 3.4  # inches; a panel is shown about 350 px wide, so 8 pt are read at 11 to 12 px
RIGHT = 0.58  # inches beside the axis, for a row's number and the diamond of the textbook's choice
LARGEST_SHOWN = 20.0  # points; the axis of differences ends here at the latest, what lies beyond gets an arrow
LINE = 22  # characters of a strategy's label before it breaks
STYLE: Any = {  # matplotlib's stubs want its keys as literals
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "fourfold",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "text.color": PALETTE["ink"],
    "axes.edgecolor": PALETTE["rule"],
    "axes.labelcolor": PALETTE["muted"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
}

Draw = Callable[[Axes, Place, Study], None]


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(STYLE):
        yield


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
    _rows(axes, place, [cell.strategy for cell in cells])
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
        color = PALETTE[{"tied": "tied", "ahead": "chosen"}.get(rival.status, "muted")]
        if value.low is not None and value.high is not None:
            ends = [max(low, scaled(value.low, metric)), min(high, scaled(value.high, metric))]
            if ends[0] < ends[1]:
                axes.plot(ends, [row, row], color=color, linewidth=1.6, solid_capstyle="butt", zorder=2)
        marker = "<" if mean < low else ">" if mean > high else "o"
        axes.plot(min(high, max(low, mean)), row, marker=marker, markersize=5, color=color, zorder=3, clip_on=False)
        _beside(axes, row, signed(value.mean, metric), "normal")
    _rows(axes, place, [verdict.best, *(rival.strategy for rival in verdict.rivals)])
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
        index = study.strategies.index(cell.strategy) % len(MARKERS)
        color = PALETTE[f"line{index + 1}"]
        best_at = {setting.lr: setting for setting in sorted(cell.settings, key=lambda each: metric.sign * each.val.mean)}
        settings = [best_at[lr] for lr in sorted(best_at)]
        scores = [scaled(setting.val.mean, metric) for setting in settings]
        axes.plot([s.lr for s in settings], scores, color=color, marker=MARKERS[index], markersize=3.6, linewidth=1.2)
        axes.plot(
            cell.chosen.lr, scaled(cell.chosen.val.mean, metric), color=color, marker="o", markersize=8,
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


def _rows(axes: Axes, place: Place, strategies: Sequence[str]) -> None:
    """Label the rows, flush left, and mark the textbook's choice with a diamond."""
    axes.set_yticks(range(len(strategies)), [textwrap.fill(strategy, LINE) for strategy in strategies])
    axes.set_ylim(len(strategies) - 0.5, -0.5)
    axes.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
    axes.tick_params(axis="y", pad=72 * _label_width(place))
    textbook = place.verdict.textbook
    for row, (label, strategy) in enumerate(zip(axes.get_yticklabels(), strategies, strict=True)):
        label.set_horizontalalignment("left")
        if textbook and strategy == textbook.strategy:
            inches = axes.bbox.width / axes.figure.dpi
            edge = 1 + (RIGHT - 0.06) / inches
            transform = axes.get_yaxis_transform()
            axes.plot(edge, row, marker="D", markersize=4, color=PALETTE["textbook"], clip_on=False, transform=transform)


def _label_width(place: Place) -> float:
    """Inches from the panel's left edge to its axis: the longest label."""
    return 0.1 + 0.063 * max(12, min(LINE, max(len(cell.strategy) for cell in place.cells)))


def _beside(axes: Axes, row: int, text: str, weight: str) -> None:
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center", ha="left", fontweight=weight)


@dataclass(frozen=True)
class Frame:
    """The size of a panel and the margins around its axes, in inches, so that panels of any height look the same."""

    height: float
    left: float
    right: float
    top: float = 0.06
    bottom: float = 0.42

    def box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Where the axes lie, in fractions of a figure of that size, when the panel's lower left corner is at (x, y) inches."""
        inner = WIDTH - self.left - self.right, self.height - self.top - self.bottom
        return (x + self.left) / width, (y + self.bottom) / height, inner[0] / width, inner[1] / height


def _frame(draw: Draw, place: Place) -> Frame:
    if draw is draw_learning_rates:
        return Frame(height=2.1, left=0.5, right=0.1)
    return Frame(height=0.5 + 0.27 * len(place.cells), left=_label_width(place), right=RIGHT)


def panel(draw: Draw, place: Place, study: Study, *, name: str, label: str) -> str:
    """One panel as an `<svg>` element for the page, in CSS variables.

    Args:
        name: unique in the page; keeps the SVG's inner references apart.
        label: what a screen reader says instead.
    """
    with _styled():
        frame = _frame(draw, place)
        figure = Figure(figsize=(WIDTH, frame.height))
        draw(figure.add_axes(frame.box(0, 0, WIDTH, frame.height)), place, study)
        return inline(_svg(figure), name, label)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return file.getvalue()


def inline(svg: str, name: str, label: str) -> str:
    """A matplotlib SVG made fit for HTML: no prologue, metadata, links, fixed size, fonts or colours; ids its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None
    opening = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(label)}">'
    body = re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in referenced else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body.replace("xlink:href", "href"))
    body = body.replace("'DejaVu Sans'", "var(--sans)")
    for color, value in PALETTE.items():
        body = body.replace(value, f"var(--{color})")
    return body


def write_sheets(study: Study, folder: Path) -> tuple[Path, ...]:
    """Write whole figures, each as SVG and PNG (200 dpi), into `folder`; those that the study has data for."""
    sheets: dict[str, tuple[Draw, list[Place]]] = {
        "quadrants": (draw_scores, list(study.places)),
        "differences": (draw_differences, [place for place in study.places if place.verdict.rivals]),
        "learning_rates": (draw_learning_rates, [place for place in study.places if sweeps_learning_rate(place)]),
    }
    written = []
    for name, (draw, places) in sheets.items():
        if places:
            written += _write_sheet(draw, places, study, folder / name)
    return tuple(written)


def sweeps_learning_rate(place: Place) -> bool:
    return any(len({setting.lr for setting in cell.settings}) > 1 for cell in place.cells)


def _write_sheet(draw: Draw, places: Sequence[Place], study: Study, stem: Path) -> list[Path]:
    title, gap, edge, legend = 0.3, 0.35, 0.15, 0.4  # inches
    columns, positions = grid(places)
    rows = max(row for row, _ in positions) + 1
    frames = [_frame(draw, place) for place in places]
    step = title + max(frame.height for frame in frames)
    width, height = columns * WIDTH + (columns - 1) * gap + 2 * edge, rows * step + legend + edge
    with _styled():
        figure = Figure(figsize=(width, height))
        for place, frame, (row, column) in zip(places, frames, positions, strict=True):
            x, top = edge + column * (WIDTH + gap), height - edge - row * step - title
            draw(figure.add_axes(frame.box(x, top - frame.height, width, height)), place, study)
            figure.text(x / width, (top + 0.06) / height, heading(place, study), fontsize=9, fontweight="bold", va="bottom")
        handles = _handles(draw, study)
        figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1.2)
        svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
        write_text(svg, _svg(figure))
        with replacing(png) as temporary:
            figure.savefig(temporary, format="png", dpi=200, facecolor="white")
    return [svg, png]


def _handles(draw: Draw, study: Study) -> list[Line2D]:
    """The key of a sheet; the page has its own, in HTML."""
    if draw is draw_learning_rates:
        return [
            Line2D(
                [], [], color=PALETTE[f"line{index % len(MARKERS) + 1}"], marker=MARKERS[index % len(MARKERS)], label=strategy
            )
            for index, strategy in enumerate(study.strategies)
        ]
    behind = "behind" if draw is draw_scores else "muted"
    words = {"chosen": "chosen on validation", "tied": "tied with it", behind: "behind"}
    handles = [Line2D([], [], color=PALETTE[color], linewidth=6, label=label) for color, label in words.items()]
    if any(place.verdict.textbook for place in study.places):
        diamond = Line2D(
            [], [], color=PALETTE["textbook"], marker="D", markersize=4, linestyle="none", label="the textbook's choice"
        )
        handles.append(diamond)
    return handles


def grid(places: Sequence[Place]) -> tuple[int, list[tuple[int, int]]]:
    """Number of columns, and (row, column) of each place: similarity across and size down where every pair is there once."""
    labels = [(place.quadrant.similarity, place.quadrant.size) if place.quadrant else (None, None) for place in places]
    across = [similarity for similarity in SIMILARITIES if similarity in {label[0] for label in labels}]
    down = [size for size in SIZES if size in {label[1] for label in labels}]
    if set(labels) == set(product(across, down)) and len(places) == len(across) * len(down):
        return len(across), [(down.index(str(size)), across.index(str(similarity))) for similarity, size in labels]
    columns = 2 if len(places) == 4 else min(3, len(places))
    return columns, [divmod(index, columns) for index in range(len(places))]
