"""What the template is filled with: the study in words, numbers and pictures, nothing left to decide."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from fourfold.report import figures
from fourfold.report.commands import repeat
from fourfold.report.wording import (
    count,
    duration,
    heading,
    headline,
    interval,
    p_value,
    percent_sign,
    sentences,
    several,
    short,
    signed,
    signed_interval,
    summary,
)  # fmt: skip
from fourfold.study.cells import Cell
from fourfold.study.integrity import Integrity, inspect
from fourfold.study.quadrants import Place, Study
from fourfold.study.verdict import Rival

HERE = Path(__file__).parent
GLYPHS = "●■◆▲▼✚✖★"  # as figures.MARKERS


@dataclass(frozen=True)
class Row:
    """One strategy's line in the main table, as text."""

    strategy: str
    role: str  # chosen | tied | behind
    textbook: bool
    mean: str
    interval: str
    std: str
    n: int
    setting: str
    edge: str
    difference: str
    difference_interval: str
    p_holm: str
    trainable: str
    seconds: str
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
    scores: str
    differences: str
    learning_rates: str


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
    names = [heading(place, study) for place in study.places]
    columns, positions = figures.grid(study.places) if study.places else (1, [])
    sections = [
        _section(place, study, f"p{index}", position)
        for index, (place, position) in enumerate(zip(study.places, positions, strict=True))
    ]
    integrity = inspect(study.results, study.places)
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
        provenance=_provenance(study),
        seeds=_seeds(study),
    )


def _tight(text: str) -> str:
    """Titles such as "similar · small", and numbers with what belongs to them, do not break across lines."""
    return re.sub(
        r" · |(?<=\d) (?=to [−+\d]|points|%)|(?<=\d to) ", lambda loose: loose[0].replace(" ", "\N{NO-BREAK SPACE}"), text
    )


def _section(place: Place, study: Study, name: str, position: tuple[int, int]) -> Section:
    title = heading(place, study)
    rivals = {rival.strategy: rival for rival in place.verdict.rivals}
    described = "; ".join(f"{cell.strategy} {short(cell.chosen.test.mean, place.metric)}" for cell in place.cells)

    def draw(what: figures.Draw, key: str, label: str) -> str:
        return figures.panel(what, place, study, name=f"{name}{key}", label=f"{title}: {label}")

    return Section(
        title=title,
        data=f"{place.dataset}, {place.train_size}",
        images=_images(place),
        metric=f"{place.metric.label}{percent_sign(place.metric)}",
        headline=headline(place),
        sentences=tuple(sentences(place)),
        row=position[0] + 1,
        column=position[1] + 1,
        rows=tuple(_row(cell, rivals.get(cell.strategy), place) for cell in place.cells),
        scores=draw(figures.draw_scores, "s", f"test {place.metric.label} by strategy: {described}"),
        differences=draw(figures.draw_differences, "d", "differences to the chosen strategy") if rivals else "",
        learning_rates=draw(figures.draw_learning_rates, "l", "validation score by learning rate")
        if figures.sweeps_learning_rate(place)
        else "",
    )


def _images(place: Place) -> str:
    """`50 train, 250 validation, 540 test images`, as far as the runs said."""
    images = place.cells[0].chosen.runs[0].images
    splits = (("train", "train"), ("val", "validation"), ("test", "test"))
    numbers = ", ".join(f"{images[split]} {word}" for split, word in splits if split in images)
    return f"{numbers} images" if numbers else ""


def _row(cell: Cell, rival: Rival | None, place: Place) -> Row:
    metric, test, textbook = place.metric, cell.chosen.test, place.verdict.textbook
    difference = rival.difference.estimate if rival and rival.difference else None
    return Row(
        strategy=cell.strategy,
        role=figures.role(cell.strategy, place),
        textbook=textbook is not None and textbook.strategy == cell.strategy,
        mean=short(test.mean, metric),
        interval=interval(test, metric),
        std="" if test.std is None else short(test.std, metric),
        n=test.n,
        setting=cell.chosen.label.removeprefix("lr "),
        edge={"low": "↓", "high": "↑", None: ""}[cell.edge],
        difference=signed(difference.mean, metric) if difference else "",
        difference_interval=signed_interval(difference, metric) if difference else "",
        p_holm=p_value(rival.p_holm) if rival else "",
        trainable=count(cell.params_trainable),
        seconds=duration(cell.seconds),
        commands=tuple(repeat(cell.chosen)),
    )


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
    number = len(figures.MARKERS)
    return [(each, f"line{index % number + 1}", GLYPHS[index % number]) for index, each in enumerate(study.strategies)]


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
        _edges(study),
        Check(
            not study.unfinished,
            "Every run finished",
            f"{several(len(study.unfinished), 'run')} did not: see below." if study.unfinished else f"All {seen.runs} of them.",
        ),
    ]


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


def _provenance(study: Study) -> list[tuple[str, str]]:
    """(name, values) of everything that the runs say they ran on; several values where they differ."""
    seen: dict[str, set[str]] = {}
    for result in study.results:
        told = {"git revision": result.git_revision or "unknown", "device": result.device or "unknown", **result.versions}
        for name, value in told.items():
            seen.setdefault(name, set()).add(str(value))
    return [(name, ", ".join(sorted(values))) for name, values in seen.items()]


def data(study: Study) -> dict[str, Any]:
    """The report's numbers for other programs: what `report.json` holds. Fractions stay 0 to 1."""
    names = [heading(place, study) for place in study.places]
    return {
        "study": study.name,
        "summary": summary(study.places, names),
        "strategies": list(study.strategies),
        "places": [_place_data(place, name) for place, name in zip(study.places, names, strict=True)],
        "unfinished": [{"run": each.folder.name, "status": each.status, "reason": each.reason} for each in study.unfinished],
        "integrity": asdict(inspect(study.results, study.places)),
        "provenance": dict(_provenance(study)),
    }


def _place_data(place: Place, name: str) -> dict[str, Any]:
    return {
        "title": name,
        "quadrant": asdict(place.quadrant) if place.quadrant else None,
        "dataset": place.dataset,
        "train_size": place.train_size,
        "model": place.model,
        "metric": place.metric.name,
        "verdict": {**asdict(place.verdict), "sentences": sentences(place)},
        "cells": [_cell_data(cell) for cell in place.cells],
    }


def _cell_data(cell: Cell) -> dict[str, Any]:
    return {
        "strategy": cell.strategy,
        "pretrained": cell.pretrained,
        "params_trainable": cell.params_trainable,
        "params_total": cell.params_total,
        "seconds": cell.seconds,
        "lr": cell.chosen.lr,
        "edge": cell.edge,
        "test": asdict(cell.chosen.test),
        "commands": repeat(cell.chosen),
        "settings": [
            {
                "lr": each.lr,
                "swept": each.swept,
                "val": asdict(each.val),
                "seeds": list(each.seeds),
                "runs": [r.run_id for r in each.runs],
            }
            for each in cell.settings
        ],
    }
