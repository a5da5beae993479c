"""Where the data sets of a study lie, in words: measured beside declared, and what following an advice costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.placement import Placement
from fourfold.report.wording import followed, heading, lies, lift_told, listed, several, signed, signed_interval
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study
from fourfold.study.verdict import Advice


@dataclass(frozen=True)
class Position:
    """One place's line, as text."""

    title: str
    data: str
    lift: str
    size: str  # images per class
    quadrant: str  # measured
    misplaced: bool  # declared otherwise
    textbook: str
    textbook_regret: str
    predicted: str
    predicted_regret: str


def positions(study: Study) -> list[Position]:
    """A line for each place that has been measured."""
    return [_position(place, found, heading(place, study)) for place, found in measured(study)]


def measured(study: Study) -> list[tuple[Place, Placement]]:
    """The places that have been measured, and where they lie."""
    return [(place, place.placement) for place in study.places if place.placement is not None]


def _position(place: Place, found: Placement, title: str) -> Position:
    verdict = place.verdict
    return Position(
        title=title,
        data=f"{place.dataset}, {place.train_size}",
        lift=lift_told(found.lift),
        size=f"{found.size.per_class:,.4g}",
        quadrant=lies(found),
        misplaced=place.misplaced,
        textbook=verdict.textbook.name if verdict.textbook else "",
        textbook_regret=regret(verdict.textbook, place.metric),
        predicted=verdict.predicted.name if verdict.predicted else "",
        predicted_regret=regret(verdict.predicted, place.metric),
    )


def regret(advice: Advice | None, metric: Metric) -> str:
    """`0.9 (−0.2 to 2.0)`; `0` of the strategy that was chosen; empty where there is no advice."""
    if advice is None:
        return ""
    if advice.regret is None:
        return "0" if advice.status == "chosen" else advice.status
    ends = signed_interval(advice.regret, metric)
    return (f"{signed(advice.regret.mean, metric)} ({ends})" if ends else signed(advice.regret.mean, metric)).replace("+", "")


def displaced(study: Study) -> str:
    """Whether the data lie where the study put them, in a sentence; empty where nothing was both declared and measured."""
    known = [
        place
        for place in study.places
        if place.quadrant and place.quadrant.similarity and place.placement and place.placement.similarity
    ]
    away = [place for place in known if place.misplaced]
    if not known:
        return ""
    if not away:
        return f"The data lie in the {'quadrants' if len(known) > 1 else 'quadrant'} that the study gave them."
    told = listed(f"{heading(place, study)} as {lies(place.placement)}" for place in away if place.placement)
    return f"In {len(away)} of {several(len(known), 'quadrant')} the data measure as another: {told}."


def foretold(study: Study) -> str:
    """How well the predicted strategies did, in a sentence; empty where none was predicted or seeds are too few to tell."""
    given = [(place, heading(place, study), place.verdict.predicted) for place in study.places if place.verdict.contenders]
    return " ".join(followed("The strategy predicted from measured similarity and size", given, "place"))


def missing(study: Study) -> str:
    """How to measure what has not been, in a sentence; empty where nothing is left that could be."""
    unknown = [place for place in study.places if place.source is not None and place.placement is None]
    if not unknown:
        return ""
    which = "these data lie" if len(unknown) == len(study.places) else f"{_few([heading(each, study) for each in unknown])} lie"
    return f"Where {which} has not been measured: `fourfold place {study.folder}` does so, and the next report draws the map."


def _few(names: Sequence[str], most: int = 4) -> str:
    return listed(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"
