"""What training moved: per strategy and block, how far the weights went, and how similar the features stayed."""

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fourfold.report.canvas import PALETTE, Frame, Kind
from fourfold.report.figures import label_rows, row_frame
from fourfold.study.cells import Cell
from fourfold.study.quadrants import Place, Study

MOST_TOLD = 9  # blocks: of more, the squares are too narrow for numbers
MOST_NAMED = 12


def changes(cell: Cell, what: str) -> dict[str, float]:
    """Mean over the chosen runs of `weights` or `cka`, by block, input side first; blocks without a value are left out."""
    found: dict[str, list[float]] = {}
    for run in cell.chosen.runs:
        for change in run.drift:
            if change.get(what) is not None:
                found.setdefault(str(change["block"]), []).append(float(change[what]))
    return {block: math.fsum(values) / len(values) for block, values in found.items()}


def draw_weights(axes: Axes, place: Place, study: Study) -> None:
    """Relative change of each block's weights, in percent; the darker, the further they went."""
    _draw(axes, place, "weights", lambda value: math.log1p(100 * value) / math.log1p(100), lambda value: _percent(100 * value))
    axes.set_xlabel("weights moved (%), input side first")


def draw_features(axes: Axes, place: Place, study: Study) -> None:
    """CKA of each block's features before and after; the darker, the more they changed."""
    _draw(axes, place, "cka", lambda value: 1 - max(0.0, value), lambda value: f"{max(0.0, value):.2f}".removeprefix("0"))
    axes.set_xlabel("features before and after (CKA)")


def _percent(value: float) -> str:
    return "0" if value == 0 else f"{value:.1g}" if value < 1 else f"{value:.0f}"


def _draw(axes: Axes, place: Place, what: str, shade: Callable[[float], float], told: Callable[[float], str]) -> None:
    found = {cell.strategy: changes(cell, what) for cell in place.cells}
    blocks = list(dict.fromkeys(block for values in found.values() for block in values))
    for row, values in enumerate(found.values()):
        for column, block in enumerate(blocks):
            if block not in values:
                continue
            dark = min(1.0, max(0.0, shade(values[block])))
            axes.add_patch(Rectangle((column - 0.5, row - 0.42), 1, 0.84, facecolor=PALETTE["rule"], linewidth=0))
            axes.add_patch(Rectangle((column - 0.5, row - 0.42), 1, 0.84, facecolor=PALETTE["chosen"], alpha=dark, linewidth=0))
            if len(blocks) <= MOST_TOLD:
                ink = PALETTE["paper"] if dark > 0.55 else PALETTE["ink"]
                axes.text(column, row, told(values[block]), ha="center", va="center", fontsize=6.5, color=ink)
    label_rows(axes, place, [*found], mark=False)
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(blocks) - 0.5)
    if len(blocks) <= MOST_NAMED:
        axes.set_xticks(range(len(blocks)), [_brief(block) for block in blocks], fontsize=6.5, rotation=0)
    else:
        axes.set_xticks([0, len(blocks) - 1], [_brief(blocks[0]), _brief(blocks[-1])], fontsize=6.5)


def _brief(block: str) -> str:
    """`stages.2.blocks.1` -> `2.1`: the words are the same in all; a name without numbers keeps its last word."""
    digits = [part for part in block.split(".") if part.isdigit()]
    return ".".join(digits) if digits else block.rpartition(".")[2][:7]


def _frame(place: Place) -> Frame:
    return row_frame(place, right=0.1)


def _known(place: Place, what: str) -> bool:
    return any(changes(cell, what) for cell in place.cells)


WEIGHTS = Kind(draw_weights, _frame, lambda place: _known(place, "weights"), lambda study: [])
FEATURES = Kind(draw_features, _frame, lambda place: _known(place, "cka"), lambda study: [])
