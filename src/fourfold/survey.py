"""Where the data sets of a study lie, measured once each and kept in its folder: what the map of its report shows.

A multirun does it when its runs are done, `fourfold place STUDY` at any time. What is measured are the training images of one
seed as a run has recorded them; the test split stays sealed.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from fourfold import imports
from fourfold.placement import FILE
from fourfold.report.wording import heading, lies, lift_told
from fourfold.study.quadrants import Place, Study, read_study
from fourfold.task import one_line, say


def finish(folder: Path, until: float | None = None) -> None:
    """Measure what the report of a multirun will want; nothing of what is known, of smoke runs, and where nothing is compared.

    A data set that cannot be placed is told of, and fails nothing: the runs are done.

    Args:
        folder: The study's.
        until: Seconds since the epoch after which none is begun.
    """
    study = read_study(folder)
    wanted = [place for place in _unknown(study) if len(place.cells) > 1 and not _debugged(place)]
    if wanted:
        named = f"{len(wanted)} data sets lie" if len(wanted) > 1 else "the data lie"
        say(f"measuring where {named}, for the map of the report (search.map=false leaves it out)")
        for sentence in _measure(wanted, study, until):
            say(sentence)


def show(folder: Path) -> None:
    """Measure every data set of a study that has not been measured yet, and print where all lie."""
    study = read_study(folder)
    refused = [*_measure(_unknown(study), study)]
    study = read_study(folder)
    rows = [("", "lift", "images per class", "quadrant", "suggested")]
    for place in study.places:
        found = place.placement
        if found is not None:
            size = f"{found.size.per_class:,.4g}"
            rows.append((heading(place, study), lift_told(found.lift), size, lies(found), found.suggested or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows[: len(rows) if len(rows) > 1 else 0]:
        print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    for sentence in refused:
        say(sentence)
    if len(rows) > 1:
        print(f"`fourfold report {folder}` draws the map.")
    elif not refused:
        say(f"{folder} has nothing to place: no finished classification starts from pretrained weights")


def _unknown(study: Study) -> list[Place]:
    return [place for place in study.places if place.source is not None and place.placement is None]


def _debugged(place: Place) -> bool:
    assert place.source is not None
    return bool(place.source.config.get("debug", {}).get("name"))


def _measure(places: list[Place], study: Study, until: float | None = None) -> Iterator[str]:
    """Measure; gives a sentence for each that could not be, and one where the time is up."""
    if not places:
        return
    from fourfold.compose import recorded

    with imports.loading("torch"):  # which a study whose data are known does without
        from fourfold.place import placed

    for place in places:
        assert place.source is not None
        if until is not None and time.time() >= until:
            yield f"the time is up: `fourfold place {place.source.folder.parent}` measures what is left"
            return
        try:
            placed(recorded(place.source.config), file=place.source.folder.parent / FILE)
        except Exception as error:  # whatever the user's own data or model raise
            yield f"{heading(place, study)} has no place on the map: {one_line(error)}"
