"""What the best run of a place gets wrong: its confusion matrix, and the mistakes it was surest of."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fourfold.files import read_json
from fourfold.report.canvas import PALETTE, WIDTH, Frame, Kind
from fourfold.report.wording import percent_sign, short
from fourfold.study.quadrants import Place, Study
from fourfold.study.results import UNREADABLE, Result

MOST_TOLD = 12  # classes: of more, the squares are too small for numbers
MOST_NAMED = 25
NAME = 9  # characters of a class's name


@dataclass(frozen=True)
class Mistakes:
    """Pictures of mistakes, side by side in one strip."""

    strip: str  # JPEG as base64
    told: tuple[tuple[str, str, float], ...]  # true class, predicted class, confidence 0 to 1


def best_run(place: Place) -> Result:
    """The run with the best validation score of the strategy that validation chose; not the luckiest on test."""
    cell = place.cell(place.verdict.best)
    assert cell is not None, "the best is one of the cells"
    return max(cell.chosen.runs, key=lambda run: place.metric.sign * run.val[place.metric.name])


def mistakes(run: Result) -> Mistakes | None:
    """What the run kept of its mistakes; None where it made or kept none."""
    try:
        told = read_json(run.folder / "mistakes.json")
        strip = base64.b64encode((run.folder / "mistakes.jpg").read_bytes()).decode()
        return Mistakes(strip, tuple((str(e["target"]), str(e["predicted"]), float(e["confidence"])) for e in told))
    except UNREADABLE:
        return None


def draw_confusion(axes: Axes, place: Place, study: Study) -> None:
    """Counts of true by predicted classes; a square is as dark as its share of the true class."""
    content = _content(place)
    matrix, classes = content["confusion"], [str(name) for name in content["classes"]]
    size = len(matrix)
    for row, counts in enumerate(matrix):
        total = sum(counts)
        for column, number in enumerate(counts):
            if not number:
                continue
            share = number / total
            shade = PALETTE["chosen"] if row == column else PALETTE["textbook"]
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=shade, alpha=0.12 + 0.88 * share, linewidth=0))
            if size <= MOST_TOLD:
                ink = PALETTE["paper"] if share > 0.5 else PALETTE["ink"]
                axes.text(column, row, str(number), ha="center", va="center", fontsize=6, color=ink)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal", adjustable="box")
    shown = range(size) if size <= MOST_NAMED else []
    names = [name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in classes]
    size_of_names = 6.5 if size <= MOST_TOLD else 5
    axes.set_yticks(list(shown), [names[i] for i in shown], fontsize=size_of_names)
    axes.set_xticks(list(shown), [names[i] for i in shown], fontsize=size_of_names, rotation=90)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def caption(place: Place) -> str:
    """Which run it is."""
    run = best_run(place)
    score = f"{short(run.test[place.metric.name], place.metric)}{percent_sign(place.metric)}"
    return f"{place.verdict.best}, seed {run.seed}: test {place.metric.label} {score}"


def _content(place: Place) -> Mapping[str, Any]:
    try:
        content = read_json(best_run(place).folder / "result.json")
        return content if content.get("confusion") and len(content["classes"]) == len(content["confusion"]) else {}
    except UNREADABLE:
        return {}


def _frame(place: Place) -> Frame:
    """As much room as the names take; the matrix stays square."""
    classes = _content(place)["classes"]
    names = 0.06 * min(NAME, max(len(str(name)) for name in classes)) if len(classes) <= MOST_NAMED else 0.0
    left, right, bottom, top = 0.35 + names, 0.1, 0.4 + names, 0.06
    return Frame(height=WIDTH - left - right + bottom + top, left=left, right=right, bottom=bottom, top=top)


CONFUSION = Kind(
    draw_confusion,
    _frame,
    lambda place: bool(_content(place)),
    lambda study: [],
)
