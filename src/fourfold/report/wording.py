"""How numbers and verdicts are said: in percent and points, with their intervals, and never more than the data show."""

from collections.abc import Iterable, Sequence

from fourfold.placement import Placement
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study
from fourfold.study.statistics import Estimate, negated
from fourfold.study.verdict import Advice, Rival
from fourfold.transferability import Lift

WIDE = 0.05  # an interval of a tie that reaches this far is called wide

# Below this share of the way from the most frequent class to perfection, a score is told beside that class's.
LITTLE = 0.25


def scaled(value: float, metric: Metric) -> float:
    """As people read it: fractions in percent, the rest as it is."""
    return 100 * value if metric.percent else value


def short(value: float, metric: Metric) -> str:
    """`93.2` for fractions; three significant digits for quantities with a unit."""
    return f"{100 * value:.1f}" if metric.percent else f"{value:.3g}"


def signed(value: float, metric: Metric) -> str:
    """With its sign; the minus is typographic."""
    text = short(abs(value), metric)
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def spread(value: Estimate, metric: Metric) -> str:
    """`93.2 ± 1.5`: mean and standard deviation over seeds; the mean alone where there is one seed."""
    mean = short(value.mean, metric)
    return mean if value.std is None else f"{mean} ± {short(value.std, metric)}"


def interval(value: Estimate, metric: Metric) -> str:
    """`91.4 to 95.0`, or an empty string where there is one seed."""
    if value.low is None or value.high is None:
        return ""
    low, high = value.low, value.high
    if metric.percent and metric.sign * value.mean >= 0:  # a t interval may leave 0 to 100 %, the quantity cannot
        low, high = max(0.0, low), min(1.0, high)
    return f"{short(low, metric)} to {short(high, metric)}"


def between(ends: tuple[float, float] | None, metric: Metric) -> str:
    """`91.4 to 95.0`, or empty."""
    return f"{short(ends[0], metric)} to {short(ends[1], metric)}" if ends else ""


def signed_between(ends: tuple[float, float] | None, metric: Metric) -> str:
    """`−5.6 to +2.7`, or empty."""
    return f"{signed(ends[0], metric)} to {signed(ends[1], metric)}" if ends else ""


def signed_interval(value: Estimate, metric: Metric) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{signed(value.low, metric)} to {signed(value.high, metric)}"


def unit(metric: Metric) -> str:
    return " points" if metric.percent else f" in {metric.label}"


def lift_told(lift: Lift) -> str:
    """`0.98 (0.97 to 0.99)`."""
    if lift.value is None or lift.low is None or lift.high is None:
        return "undefined"
    value, low, high = (f"{each:.2f}".replace("-", "−") for each in (lift.value, lift.low, lift.high))
    return f"{value} ({low} to {high})"


def lies(placement: Placement) -> str:
    """`middle · small`, or `middle · small or large` where the size is between."""
    return f"{placement.similarity or 'unknown'} · {' or '.join(placement.sizes)}"


def percent_sign(metric: Metric) -> str:
    return " %" if metric.percent else ""


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def count(number: float) -> str:
    """`650`, `56 k`, `23.5 M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """`0.7 s`, `34 s`, `12 min`, `3.4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def energy(watt_hours: float | None) -> str:
    """`0.4 Wh`, `12 Wh`, `3.4 kWh`; empty where it is not known."""
    if watt_hours is None:
        return ""
    return f"{watt_hours / 1000:.2g} kWh" if watt_hours >= 1000 else f"{watt_hours:.2g} Wh"


def share(value: float | None) -> str:
    """`67 %`, or empty."""
    return "" if value is None else f"{100 * value:.0f} %"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def several(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def signed_points(value: Estimate, metric: Metric) -> str:
    """`−5.6 points (−8.5 to −2.7)`: a difference with its 95 % interval."""
    ends = signed_interval(value, metric)
    return f"{signed(value.mean, metric)}{unit(metric)}" + (f" ({ends})" if ends else "")


def points(value: Estimate, metric: Metric) -> str:
    """`5.6 points (2.7 to 8.5)`: as `signed_points`, without plus signs."""
    return signed_points(value, metric).replace("+", "")


def heading(place: Place, study: Study) -> str:
    """The place's title, with what else tells it from the others of this study."""
    same = [other for other in study.places if other.title == place.title]
    parts = [place.title]
    if len({(other.dataset, other.train_size) for other in same}) > 1:
        parts.append(place.dataset)
    if len({other.model for other in study.places}) > 1:
        parts.append(place.model)
    return " · ".join([*parts, *place.variant])


def headline(place: Place) -> str:
    """A place's verdict in a few words."""
    verdict = place.verdict
    if not verdict.rivals:
        return f"Only {verdict.best} was run"
    if not verdict.contenders:
        return "One seed: no claim"
    if verdict.winner:
        return f"{verdict.winner} wins"
    if len(verdict.contenders) > 1:
        return f"Tie: {listed(verdict.contenders)}"
    return f"{verdict.best} leads, not for certain"


def sentences(place: Place) -> list[str]:
    """A place's verdict in full: who is best and how surely, the cheapest of a tie, the textbook's choice, transfer."""
    said = [
        _who(place),
        _hidden(place),
        _needed(place),
        _chance(place),
        _cheapest(place),
        _textbook(place),
        _transfer(place),
    ]
    return [sentence for sentence in said if sentence]


def _who(place: Place) -> str:
    verdict, metric = place.verdict, place.metric
    best = place.cell(verdict.best)
    assert best is not None, "the best is one of the cells"
    score = f"{verdict.best} ({short(best.chosen.test.mean, metric)}{percent_sign(metric)})"
    behind = [rival for rival in verdict.rivals if rival.status == "behind"]
    if not verdict.rivals:
        return f"{score}: there is nothing to compare it with."
    if not verdict.contenders:
        return f"{score} is best on validation; with fewer than two seeds in common no more can be said."
    if verdict.winner:
        nearest = f"{behind[0].strategy}, {_by(behind[0], metric)}, p\N{NO-BREAK SPACE}{p_value(behind[0].p_holm)}"
        return f"{score} is ahead of all others; nearest is {nearest}."
    said = [f"{score} is best on validation"]
    for status, one, many in (
        ("tied", "is tied with it", "are tied with it"),
        ("ahead", "tests better", "test better"),
        ("unknown", "has too few seeds to tell", "have too few seeds to tell"),
    ):
        rivals = [rival for rival in verdict.rivals if rival.status == status]
        if rivals:
            names = f"{listed(rival.strategy for rival in rivals)} {one if len(rivals) == 1 else many}"
            by = listed(_by(rival, metric) for rival in rivals)
            said.append(names if status == "unknown" else f"{names}: {by}")
    if len(said) == 1:
        said.append(f"the others are behind, but after Holm's correction for {several(len(behind), 'comparison')} not surely")
    return f"{'; '.join(said)}."


def _hidden(place: Place) -> str:
    """A tie out of ignorance: what the intervals would still allow."""
    tied = [rival.difference.estimate for rival in place.verdict.rivals if rival.status == "tied" and rival.difference]
    most = max((abs(end) for each in tied for end in (each.low, each.high) if end is not None), default=0.0)
    if not place.metric.percent or most < WIDE:
        return ""
    return f"Too few seeds to be sure: differences of up to {short(most, place.metric)} points would fit these data."


def _needed(place: Place) -> str:
    """How many seeds would settle the nearest tie."""
    tied = [rival for rival in place.verdict.rivals if rival.status == "tied"]
    needed = tied[0].seeds_needed(place.metric.margin) if tied else None
    have = tied[0].difference.estimate.n if tied and tied[0].difference else 0
    if needed is None or needed <= have:
        return ""
    what = "a difference like the one seen, or of one point," if place.metric.percent else "a difference like the one seen"
    return f"About {needed} seeds would show {what} between {place.verdict.best} and {tied[0].strategy} four times in five."


def _chance(place: Place) -> str:
    best = place.cell(place.verdict.best)
    chance = place.chance
    if best is None or chance is None or best.chosen.test.mean - chance > LITTLE * (1 - chance):
        return ""
    return f"For comparison: always answering the most frequent class gives {short(chance, place.metric)} %."


def _by(rival: Rival, metric: Metric) -> str:
    return signed_points(rival.difference.estimate, metric) if rival.difference else ""


def _cheapest(place: Place) -> str:
    verdict = place.verdict
    cell = place.cell(verdict.cheapest) if verdict.cheapest else None
    if cell is None or len(verdict.contenders) < 2:
        return ""
    parameters = f"{count(cell.params_trainable)} of {count(cell.params_total)} parameters"
    return f"Cheapest of these: {cell.strategy}, which trains {parameters} in {duration(cell.seconds)}."


def _textbook(place: Place) -> str:
    textbook, metric = place.verdict.textbook, place.metric
    if textbook is None:
        return ""
    name = f"The textbook's choice, {textbook.name},"
    if textbook.status == "not run":
        return f"{name} was not run."
    if textbook.status == "chosen":
        return f"{name} is the one chosen."
    if textbook.regret is None:
        return f"{name} shares no seed with it."
    word = {"tied": "is tied with it; regret", "behind": "is behind; regret", "ahead": "tests better; regret"}
    return f"{name} {word.get(textbook.status, 'has a regret of')} {points(textbook.regret, metric)}."


def _transfer(place: Place) -> str:
    transfer, metric = place.verdict.transfer, place.metric
    if transfer is None or transfer.difference is None or transfer.status == "unknown":
        return ""
    versus = f"{transfer.pretrained} against {transfer.scratch}"
    gain = points(negated(transfer.difference.estimate), metric)
    if transfer.status == "negative":
        return f"Negative transfer: pretraining loses {points(transfer.difference.estimate, metric)}, {versus}."
    if transfer.status == "no benefit":
        warning = "Warning of negative transfer: from random weights it is at least as good. " if transfer.flagged else ""
        return f"{warning}Pretraining gains nothing measurable: {gain}, {versus}."
    return f"Pretraining gains {gain}, {versus}."


def summary(places: Sequence[Place], names: Sequence[str]) -> list[str]:
    """The whole study in three sentences: who wins, or is the cheapest of a tie; the textbook; transfer.

    `names` are the places' headings, in order.
    """
    if not places:
        return ["No run has finished yet."]
    kind = "quadrant" if all(place.quadrant for place in places) else "comparison"
    named = list(zip(places, names, strict=True))
    judged = [(place, name) for place, name in named if place.verdict.contenders]
    if not judged:
        if any(place.verdict.rivals for place in places):
            return ["With one seed nothing can be claimed: the values below are single runs, each at its best validation."]
        return ["One strategy was run: there is nothing to compare yet."]
    said = [*_winners(judged, len(places), kind), *_ties(judged, len(places))]
    return [
        f"{'; '.join(said)}.",
        *followed("The textbook's choice", [(place, name, place.verdict.textbook) for place, name in judged], kind),
        *_transfers(judged, kind),
    ]


def _winners(judged: Sequence[tuple[Place, str]], total: int, kind: str) -> list[str]:
    won: dict[str, list[str]] = {}
    for place, name in judged:
        if place.verdict.winner:
            won.setdefault(place.verdict.winner, []).append(name)
    number = sum(len(names) for names in won.values())
    if not won:
        return [f"In none of the {several(total, kind)} do the data show a single winner" if total > 1 else "No single winner"]
    who = "; ".join(f"{strategy} in {listed(names)}" for strategy, names in won.items())
    return [f"One strategy wins in {number} of {several(total, kind)}: {who}"]


def _ties(judged: Sequence[tuple[Place, str]], total: int) -> list[str]:
    tied = [(place, name) for place, name in judged if not place.verdict.winner and len(place.verdict.contenders) > 1]
    if not tied:
        return []
    cheapest: dict[str, list[str]] = {}
    for place, name in tied:
        cheapest.setdefault(str(place.verdict.cheapest), []).append(name)
    where = f"in {len(tied)} the" if len(tied) < total else "the"
    who = "; ".join(f"{strategy} in {listed(names)}" for strategy, names in cheapest.items())
    return [f"{where} best cannot be told apart; the cheapest that is not shown to be behind: {who}"]


def followed(whose: str, given: Sequence[tuple[Place, str, Advice | None]], kind: str) -> list[str]:
    """In how many places an advice was good, and where it lost most: one sentence, or none where there is nothing to tell."""
    tested = [(place, name, advice) for place, name, advice in given if advice and advice.status not in ("not run", "unknown")]
    if not tested:
        return []
    good = sum(advice.status != "behind" for _, _, advice in tested)
    sentence = f"{whose} is the best or tied with it in {good} of {several(len(tested), kind)}"
    lost = [(each.regret.mean, place, name, each) for place, name, each in tested if each.status == "behind" and each.regret]
    if not lost:
        return [f"{sentence}."]
    most, place, name, advice = max(lost, key=lambda each: each[0])
    return [f"{sentence}; it loses most in {name}, where {advice.name} costs {short(most, place.metric)}{unit(place.metric)}."]


def _transfers(judged: Sequence[tuple[Place, str]], kind: str) -> list[str]:
    known = [(place.verdict.transfer.status, name) for place, name in judged if place.verdict.transfer]
    flagged = [
        name
        for place, name in judged
        if place.verdict.transfer and place.verdict.transfer.flagged and place.verdict.transfer.status != "negative"
    ]
    of = {status: [name for each, name in known if each == status] for status in ("helps", "no benefit", "negative")}
    total = sum(len(names) for names in of.values())
    if not total:
        return []
    said = [f"pretraining helps in {len(of['helps'])} of {several(total, kind)}"]
    if of["no benefit"]:
        said.append(f"brings nothing measurable in {listed(of['no benefit'])}")
    if of["negative"]:
        said.append(f"does harm in {listed(of['negative'])}")
    if flagged:
        said.append(f"may do harm in {listed(flagged)}, where training from scratch is at least as good")
    sentence = listed(said)
    return [f"{sentence[0].upper()}{sentence[1:]}."]
