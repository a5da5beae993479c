"""What every picture of a report is drawn on: colours, sizes, and the ways from axes to the page and to files.

A panel is drawn by one function on matplotlib axes in the colours of `PALETTE`. In the page each colour becomes a CSS variable,
so a panel follows the page from light to dark; the sheets keep the colours as they are, on white.
"""

import io
import re
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

from fourfold.files import replacing, write_text
from fourfold.report.wording import heading
from fourfold.study.quadrants import SIMILARITIES, SIZES, Place, Study

# Colour-blind safe (after Okabe & Ito 2008), of middle tone; the page gives the same names other values in the dark.
PALETTE = {
    "ink": "#1c2024", "muted": "#646b73", "rule": "#dfe2e5", "band": "#dde7ec", "paper": "#fefefe",
    "chosen": "#0b6e99", "tied": "#63a9c6", "behind": "#b4bbc2", "textbook": "#c2740a",
    "line1": "#0b6e98", "line2": "#d1690e", "line3": "#1a8f6a", "line4": "#a8508f", "line5": "#7a6ccf", "line6": "#9a8412",
    "line7": "#c24a4a", "line8": "#5f6b76",
}  # fmt: skip
MARKERS = "osD^vPX*"
WIDTH = 3.4  # inches; a panel is shown about 350 px wide, so 8 pt are read at 11 to 12 px
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


@dataclass(frozen=True)
class Kind:
    """One kind of panel, of which every place has at most one."""

    draw: Draw
    frame: Callable[[Place], Frame]
    shown: Callable[[Place], bool]  # whether there is anything to draw
    handles: Callable[[Study], list[Line2D]]  # the key of a sheet; the page has its own, in HTML


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib with the report's style, and nothing of the user's changed."""
    with matplotlib.rc_context(STYLE):
        yield


def panel(kind: Kind, place: Place, study: Study, *, name: str, label: str) -> str:
    """One panel as an `<svg>` element for the page, in CSS variables; empty where there is nothing to draw.

    Args:
        name: unique in the page; keeps the SVG's inner references apart.
        label: what a screen reader says instead.
    """
    if not kind.shown(place):
        return ""
    frame = kind.frame(place)
    with styled():
        figure = Figure(figsize=(WIDTH, frame.height))
        kind.draw(figure.add_axes(frame.box(0, 0, WIDTH, frame.height)), place, study)
        return inline(svg(figure), name, label)


def svg(figure: Figure) -> str:
    """A figure as SVG text, the same in every call."""
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


def write_sheet(kind: Kind, study: Study, stem: Path) -> list[Path]:
    """All panels of one kind with their key, as SVG and PNG (200 dpi) beside each other; nothing where there is none."""
    places = [place for place in study.places if kind.shown(place)]
    if not places:
        return []
    title, gap, edge, legend = 0.3, 0.35, 0.15, 0.4  # inches
    columns, positions = grid(places)
    rows = max(row for row, _ in positions) + 1
    frames = [kind.frame(place) for place in places]
    step = title + max(frame.height for frame in frames)
    width, height = columns * WIDTH + (columns - 1) * gap + 2 * edge, rows * step + legend + edge
    with styled():
        figure = Figure(figsize=(width, height))
        for place, frame, (row, column) in zip(places, frames, positions, strict=True):
            x, top = edge + column * (WIDTH + gap), height - edge - row * step - title
            kind.draw(figure.add_axes(frame.box(x, top - frame.height, width, height)), place, study)
            figure.text(x / width, (top + 0.06) / height, heading(place, study), fontsize=9, fontweight="bold", va="bottom")
        handles = kind.handles(study)
        if handles:
            figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1.2)
        return save(figure, stem)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG and PNG (200 dpi), each whole or not at all."""
    vector, pixels = stem.with_suffix(".svg"), stem.with_suffix(".png")
    write_text(vector, svg(figure))
    with replacing(pixels) as temporary:
        figure.savefig(temporary, format="png", dpi=200, facecolor="white")
    return [vector, pixels]


def lines(study: Study) -> list[Line2D]:
    """The key of panels that give each strategy a colour and a marker."""
    return [
        Line2D([], [], color=color(study, strategy), marker=marker(study, strategy), label=strategy)
        for strategy in study.strategies
    ]


def color(study: Study, strategy: str) -> str:
    """The colour of a strategy, the same in all panels of a study."""
    return PALETTE[f"line{study.strategies.index(strategy) % len(MARKERS) + 1}"]


def marker(study: Study, strategy: str) -> str:
    """The marker of a strategy, for who cannot tell the colours."""
    return MARKERS[study.strategies.index(strategy) % len(MARKERS)]


def grid(places: Sequence[Place]) -> tuple[int, list[tuple[int, int]]]:
    """Number of columns, and (row, column) of each place: similarity across and size down where every pair is there once."""
    labels = [(place.quadrant.similarity, place.quadrant.size) if place.quadrant else (None, None) for place in places]
    across = [similarity for similarity in SIMILARITIES if similarity in {label[0] for label in labels}]
    down = [size for size in SIZES if size in {label[1] for label in labels}]
    if set(labels) == set(product(across, down)) and len(places) == len(across) * len(down):
        return len(across), [(down.index(str(size)), across.index(str(similarity))) for similarity, size in labels]
    columns = 2 if len(places) == 4 else min(3, len(places))
    return columns, [divmod(index, columns) for index in range(len(places))]
