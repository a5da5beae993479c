"""What the template is filled with: the study in words, numbers and pictures, nothing left to decide."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import markupsafe

from fourfold.report import canvas, confusion, figures, gallery, methods, positions, standings, study_map
from fourfold.report.commands import repeat
from fourfold.report.confusion import Mistakes
from fourfold.report.numbers import provenance
from fourfold.report.wording import (
    between,
    count,
    duration,
    energy,
    heading,
    headline,
    interval,
    listed,
    p_value,
    percent_sign,
    sentences,
    several,
    share,
    short,
    signed,
    signed_between,
    signed_interval,
    summary,
)  # fmt: skip
from fourfold.study.answers import difference_interval, mean_interval
from fourfold.study.cells import Cell
from fourfold.study.digest import HEADINGS, Run, digest
from fourfold.study.energy import watt_hours
from fourfold.study.integrity import Integrity, inspect
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study
from fourfold.study.ranking import Ranking, rank
from fourfold.study.statistics import MOST_SEEDS
from fourfold.study.verdict import Rival, permutation_p_values

HERE = Path(__file__).parent
MOST_LISTED = 40  # runs of one state
GLYPHS = "●■◆▲▼✚✖★"  # as canvas.MARKERS


@dataclass(frozen=True)
class Row:
    """One strategy's line in the main table, as text."""

    strategy: str
    role: str  # chosen | tied | behind
    textbook: bool
    mean: str
    interval: str
    over_images: str  # interval over seeds and test images
    std: str
    n: int
    setting: str
    edge: str
    difference: str
    difference_interval: str
    bootstrap: str  # interval of the difference
    difference_over_images: str
    p_holm: str
    p_permutation: str
    effect: str
    superiority: str
    needed: str
    trainable: str
    seconds: str
    all_seconds: str  # of all its settings and seeds
    energy: str  # of those
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One place: its names, its verdict, its rows and pictures."""

    title: str
    data: str
    images: str
    metric: str
    headline: str
    sentences: tuple[str, ...]
    row: int
    column: int
    rows: tuple[Row, ...]
    pictures: Mapping[str, str]  # by kind; empty where there is nothing to draw
    confused: str  # which run the confusion matrix is of
    mistakes: Mistakes | None


@dataclass(frozen=True)
class Check:
    """One thing that must hold for the numbers to be trusted."""

    holds: bool
    title: str
    text: str


def render(study: Study) -> str:
    """The whole page as one self-contained HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _tight
    environment.filters["code"] = _code
    names = [heading(place, study) for place in study.places]
    columns, squares = canvas.grid(study.places) if study.places else (1, [])
    sections = [
        _section(place, study, f"p{index}", position)
        for index, (place, position) in enumerate(zip(study.places, squares, strict=True))
    ]
    integrity = inspect(study.results, study.places)
    ranking, left = rank(study.places), _left(study)
    maps, lines = study_map.panels(study), positions.positions(study)
    return environment.get_template("template.html.j2").render(
        study=study,
        facts=_facts(study),
        summary=summary(study.places, names),
        columns=columns,
        sections=sections,
        has_textbook=any(row.textbook for section in sections for row in section.rows),
        has_chance=any(place.chance is not None for place in study.places),
        has_points=any(place.metric.percent for place in study.places),
        lines=_lines(study),
        checks=_checks(study, integrity),
        integrity=integrity,
        provenance=provenance(study),
        seeds=_seeds(study),
        left=left,
        most_listed=MOST_LISTED,
        has_answers=any(row.over_images for section in sections for row in section.rows),
        has_energy=any(row.energy for section in sections for row in section.rows),
        contents=_contents(sections, bool(lines), ranking, left),
        shown=lambda kind: any(section.pictures[kind] for section in sections),
        has=lambda section, kinds: any(section.pictures[kind] for kind in kinds),
        ranking=ranking,
        ranks=standings.panel(ranking) if ranking else "",
        ranked=_ranked(ranking) if ranking else "",
        maps=maps,
        map_winners=[(name, *_glyph(study, name)) for name in study_map.winners(study)],
        map_undecided=any(point.place.verdict.winner is None for point in study_map.points(study)),
        positions=lines,
        regret_unit=listed(dict.fromkeys("points" if place.metric.percent else place.metric.label for place in study.places)),
        displaced=positions.displaced(study),
        foretold=positions.foretold(study),
        unmeasured=positions.missing(study),
        methods=methods.paragraph(study),
        bibtex=methods.bibtex(study),
    )


def _tight(text: str) -> str:
    """Titles such as "similar · small", and numbers with what belongs to them, do not break across lines."""
    return re.sub(
        r" · |(?<=\d) (?=to [−+\d]|points|%)|(?<=\d to) ", lambda loose: loose[0].replace(" ", "\N{NO-BREAK SPACE}"), text
    )


def _code(text: str) -> markupsafe.Markup:
    """What stands between backticks as code."""
    parts = [markupsafe.escape(part) for part in text.split("`")]
    return markupsafe.Markup("".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)))


def _section(place: Place, study: Study, name: str, position: tuple[int, int]) -> Section:
    title = heading(place, study)
    rivals = {rival.strategy: rival for rival in place.verdict.rivals}
    by_signs = permutation_p_values(place.verdict.rivals)
    described = "; ".join(f"{cell.strategy} {short(cell.chosen.test.mean, place.metric)}" for cell in place.cells)
    labels = {key: key.replace("_", " ") for key in gallery.KINDS}
    labels["quadrants"] = f"test {place.metric.label} by strategy: {described}"
    labels["differences"] = "differences to the chosen strategy"
    return Section(
        title=title,
        data=f"{place.dataset}, {place.train_size}",
        images=_images(place),
        metric=f"{place.metric.label}{percent_sign(place.metric)}",
        headline=headline(place),
        sentences=tuple(sentences(place)),
        row=position[0] + 1,
        column=position[1] + 1,
        rows=tuple(_row(cell, rivals.get(cell.strategy), by_signs.get(cell.strategy), place) for cell in place.cells),
        pictures={
            key: canvas.panel(kind, place, study, name=f"{name}{key}", label=f"{title}: {labels[key]}")
            for key, kind in gallery.KINDS.items()
        },
        confused=confusion.caption(place),
        mistakes=confusion.mistakes(confusion.best_run(place)),
    )


def _images(place: Place) -> str:
    """`50 train, 250 validation, 540 test images`, as far as the runs said."""
    images = place.cells[0].chosen.runs[0].images
    splits = (("train", "train"), ("val", "validation"), ("test", "test"))
    numbers = ", ".join(f"{images[split]} {word}" for split, word in splits if split in images)
    return f"{numbers} images" if numbers else ""


def _row(cell: Cell, rival: Rival | None, by_signs: float | None, place: Place) -> Row:
    metric, test, textbook = place.metric, cell.chosen.test, place.verdict.textbook
    difference = rival.difference if rival else None
    value = difference.estimate if difference else None
    runs = [run for setting in cell.settings for run in setting.runs]
    best = place.cell(place.verdict.best)
    assert best is not None, "the best is one of the cells"
    return Row(
        strategy=cell.strategy,
        role=figures.role(cell.strategy, place),
        textbook=textbook is not None and textbook.strategy == cell.strategy,
        mean=short(test.mean, metric),
        interval=interval(test, metric),
        over_images=between(mean_interval(cell.chosen, metric), metric),
        std="" if test.std is None else short(test.std, metric),
        n=test.n,
        setting=cell.chosen.label.removeprefix("lr "),
        edge={"low": "↓", "high": "↑", None: ""}[cell.edge],
        difference=signed(value.mean, metric) if value else "",
        difference_interval=signed_interval(value, metric) if value else "",
        bootstrap=signed_between(difference.bootstrap, metric) if difference else "",
        difference_over_images=signed_between(difference_interval(cell, best, metric), metric) if difference else "",
        p_holm=p_value(rival.p_holm) if rival else "",
        p_permutation=p_value(by_signs),
        effect=_effect(difference.effect) if difference else "",
        superiority=share(difference.superiority) if difference else "",
        needed=_needed(rival, metric) if rival and rival.status == "tied" else "",
        trainable=count(cell.params_trainable),
        seconds=duration(cell.seconds),
        all_seconds=duration(math.fsum(run.seconds for run in runs)),
        energy=energy(watt_hours(runs)),
        commands=tuple(repeat(cell.chosen)),
    )


def _effect(effect: float | None) -> str:
    if effect is None:
        return ""
    sign = "−" if effect < 0 else "+" if effect > 0 else ""
    return f"{sign}{abs(effect):.1f}" if math.isfinite(effect) else f"{sign}∞"


def _needed(rival: Rival, metric: Metric) -> str:
    needed = rival.seeds_needed(metric.margin)
    have = rival.difference.estimate.n if rival.difference else 0
    if needed is not None and needed <= have:  # luck or the margin made the tie, not the number of seeds
        return ""
    return f"over {MOST_SEEDS}" if needed is None else str(needed)


def _left(study: Study) -> list[tuple[str, list[Run]]]:
    """What did not end well, by state, with reasons and commands."""
    found = digest(study.folder, read=(study.results, study.unfinished))
    states = ("failed", "interrupted", "unfinished", "pruned")
    return [(HEADINGS[state], list(found.of(state))) for state in states if found.of(state)]


def _contents(
    sections: Sequence[Section], has_map: bool, ranking: Ranking | None, left: Sequence[tuple[str, list[Run]]]
) -> list[tuple[str, str]]:
    """(id, title) of the page's sections, in their order."""

    def shown(*kinds: str) -> bool:
        return any(section.pictures[kind] for section in sections for kind in kinds)

    entries = [
        ("quadrants", "Scores", bool(sections)),
        ("map", "Map", has_map),
        ("table", "Numbers", bool(sections)),
        ("verdicts", "Verdicts", shown("differences")),
        ("certainty", "Certainty", shown("differences")),
        ("ranks", "Ranks", ranking is not None),
        ("cost", "Cost", shown("parameters", "hours")),
        ("learning-rates", "Learning rates", shown("learning_rates")),
        ("curves", "Curves", shown("loss_curves", "validation_curves")),
        ("blocks", "Blocks", shown("weight_changes")),
        ("mistakes", "Mistakes", shown("confusion")),
        ("trust", "Trust", bool(sections)),
        ("unfinished", "Not finished", bool(left)),
        ("repeat", "Repeat", bool(sections)),
        ("methods", "Methods", bool(sections)),
        ("provenance", "Provenance", bool(sections)),
    ]
    return [(name, title) for name, title, there in entries if there]


def _ranked(ranking: Ranking) -> str:
    """The ranking in a sentence or two."""
    told = (
        f"Friedman's test over {ranking.places} places: χ² = {ranking.chi_square:.1f} with {len(ranking.ranks) - 1} degrees of "
        f"freedom, p {'' if ranking.p < 0.001 else '= '}{p_value(ranking.p)}."
    )
    far = f"Mean ranks further apart than {ranking.critical_difference:.2f} differ (Nemenyi)"
    joined = f"{far}; bars join those that do not." if ranking.cliques else f"{far}."
    apart = ranking.ranks[-1] - ranking.ranks[0] > ranking.critical_difference
    return f"{told} {joined}" if apart else f"{told} {joined} No two strategies are that far apart."


def _facts(study: Study) -> list[str]:
    models = sorted({place.model for place in study.places})
    rates = {setting.lr for place in study.places for cell in place.cells for setting in cell.settings}
    noun = "quadrant" if all(place.quadrant for place in study.places) else "comparison"
    return [
        several(len(study.results), "finished run"),
        several(len(study.places), noun),
        "1 strategy" if len(study.strategies) == 1 else f"{len(study.strategies)} strategies",
        several(len(rates), "learning rate"),
        f"{_seeds(study)} per cell",
        ", ".join(models) if len(models) < 4 else several(len(models), "model"),
        f"{duration(math.fsum(result.seconds for result in study.results))} of training",
    ]


def _seeds(study: Study) -> str:
    counts = sorted({cell.chosen.test.n for place in study.places for cell in place.cells}) or [0]
    return several(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _lines(study: Study) -> list[tuple[str, str, str]]:
    """(strategy, colour, glyph) for the key of the learning-rate panels."""
    return [(each, *_glyph(study, each)) for each in study.strategies]


def _glyph(study: Study, strategy: str) -> tuple[str, str]:
    """Its colour and its marker in every panel."""
    index = study.strategies.index(strategy) % len(canvas.MARKERS)
    return f"line{index + 1}", GLYPHS[index]


def _checks(study: Study, seen: Integrity) -> list[Check]:
    frozen = seen.proven + len(seen.broken)
    mixed = _few(f"{manifest.place} seed {manifest.seed}" for manifest in seen.mixed)
    return [
        Check(not seen.opened_otherwise, "Test split opened once", f"{seen.opened_once} of {several(seen.runs, 'run')}."),
        Check(
            not seen.broken,
            "Frozen stayed frozen",
            f"{seen.proven} of the {several(frozen, 'run')} that froze something hash to the same before and after training "
            f"({seen.frozen_tensors} tensors); the other {seen.nothing_frozen} froze nothing.",
        ),
        Check(
            not seen.mixed,
            "Same images for every strategy",
            f"One manifest for each seed of each row, {len(seen.manifests)} in all."
            if not seen.mixed
            else f"The strategies saw different images in {mixed}.",
        ),
        *([_copies(seen)] if seen.compared else []),
        _edges(study),
        Check(
            not study.unfinished,
            "Every run finished",
            f"{several(len(study.unfinished), 'run')} did not: see below." if study.unfinished else f"All {seen.runs} of them.",
        ),
    ]


def _copies(seen: Integrity) -> Check:
    none = f"The files of {several(seen.compared, 'run')} were compared, byte by byte."
    most = f"{several(seen.most_copies, 'test image')} that training has as well"
    some = f"Up to {most}, in {several(seen.copied, 'run')}: their scores flatter, and manifest.json names the copies."
    return Check(not seen.copied, "No test image in training", some if seen.copied else none)


def _edges(study: Study) -> Check:
    rates = [(cell.edge, len({each.lr for each in cell.settings})) for place in study.places for cell in place.cells]
    swept = [(edge, number) for edge, number in rates if number > 1]
    at_edge = [edge for edge, _ in swept if edge]
    if not swept:
        text = "There was one learning rate only: nothing was chosen."
    elif not at_edge:
        text = f"The best rate is an inner one in all {several(len(swept), 'cell')}."
    elif all(number == 2 for _, number in swept):
        text = "A grid of two rates has nothing but ends: a better rate may lie between or beyond."
    else:
        ends = f"{len(at_edge)} of {several(len(swept), 'cell')} chose an end, marked ↑ or ↓ in the table"
        text = f"{ends}: a better rate may lie beyond."
    return Check(not at_edge, "Learning rate inside its grid", text)


def _few(names: Iterable[str], most: int = 6) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
