"""Hold every method of a study against plain `full`, place by place: what is added to fine-tuning, and what it gave.

    python scripts/against_full.py outputs/transfer_methods

Prints a Markdown table with a column for each place. First test accuracy of `full` in percent (mean and standard deviation over
seeds), then the paired difference of each method in points with its 95 % t interval, each at the learning rate that validation
chose for it. Bold is what is no tie: an interval without 0 and a point or more; a star follows where p < .05 after Holm's
correction over the methods of the place.
"""

import sys
from pathlib import Path

from fourfold.study.quadrants import Place, read_study
from fourfold.study.statistics import LEVEL, Difference, holm
from fourfold.study.verdict import compare, status_of

PLAIN = "full"


def column(place: Place) -> dict[str, str]:
    """What to say of each method."""
    plain = place.cell(PLAIN)
    if plain is None:
        return {}
    found = {cell.strategy: compare(cell, plain, place.metric) for cell in place.cells if cell is not plain}
    known = {name: difference for name, difference in found.items() if difference is not None and difference.p is not None}
    corrected = dict(zip(known, holm([difference.p or 0.0 for difference in known.values()]), strict=True))
    test = plain.chosen.test
    told = {PLAIN: f"{100 * test.mean:.1f}" + ("" if test.std is None else f" ± {100 * test.std:.1f}")}
    return told | {name: _told(difference, corrected[name], place) for name, difference in known.items()}


def _told(difference: Difference, p: float, place: Place) -> str:
    value = difference.estimate
    assert value.low is not None
    assert value.high is not None
    text = f"{100 * value.mean:+.1f} ({100 * value.low:+.1f} to {100 * value.high:+.1f})"
    return text if status_of(difference, place.metric) == "tied" else f"**{text}**" + ("*" if p < LEVEL else "")


def main() -> None:
    places = read_study(Path(sys.argv[1])).places
    columns = [column(place) for place in places]
    methods = dict.fromkeys(name for each in columns for name in each)
    print(f"| | {' | '.join(place.title for place in places)} |")
    print("|---|" + "--:|" * len(places))
    for name in methods:
        print(f"| `{name}` | {' | '.join(each.get(name, '') for each in columns)} |")


if __name__ == "__main__":
    main()
