"""The report's numbers for other programs: what `report.json` holds. Fractions stay 0 to 1."""

import math
from typing import Any

from fourfold.records import asdict
from fourfold.report import methods
from fourfold.report.commands import repeat
from fourfold.report.positions import displaced, foretold
from fourfold.report.wording import heading, sentences, summary
from fourfold.study.answers import difference_interval, mean_interval
from fourfold.study.cells import Cell
from fourfold.study.energy import watt_hours
from fourfold.study.integrity import inspect
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, Study
from fourfold.study.ranking import rank
from fourfold.study.statistics import bootstrap_interval
from fourfold.study.verdict import Rival, permutation_p_values


def data(study: Study) -> dict[str, Any]:
    """Everything that the page tells, as plain values; what is not finite stays so, for whoever writes it down."""
    names = [heading(place, study) for place in study.places]
    return {
        "study": study.name,
        "summary": summary(study.places, names),
        "displaced": displaced(study),
        "foretold": foretold(study),
        "strategies": list(study.strategies),
        "places": [_place_data(place, name) for place, name in zip(study.places, names, strict=True)],
        "ranking": _ranking_data(study),
        "methods": methods.paragraph(study),
        "unfinished": [{"run": each.folder.name, "status": each.status, "reason": each.reason} for each in study.unfinished],
        "integrity": asdict(inspect(study.results, study.places)),
        "provenance": dict(provenance(study)),
    }


def _ranking_data(study: Study) -> dict[str, Any] | None:
    ranking = rank(study.places)
    return asdict(ranking) if ranking else None


def _place_data(place: Place, name: str) -> dict[str, Any]:
    transfer, by_signs = place.verdict.transfer, permutation_p_values(place.verdict.rivals)
    verdict = asdict(place.verdict) | {"sentences": sentences(place)}
    verdict["rivals"] = [_rival_data(rival, by_signs[rival.strategy], place) for rival in place.verdict.rivals]
    if transfer is not None:
        verdict["transfer"]["flagged"] = transfer.flagged
    return {
        "title": name,
        "quadrant": asdict(place.quadrant) if place.quadrant else None,
        "dataset": place.dataset,
        "train_size": place.train_size,
        "model": place.model,
        "metric": place.metric.name,
        "placement": _placement_data(place),
        "verdict": verdict,
        "cells": [_cell_data(cell, place.metric) for cell in place.cells],
    }


def _placement_data(place: Place) -> dict[str, Any] | None:
    """Where the data were measured to lie; null where nobody has."""
    found = place.placement
    if found is None:
        return None
    lift = {name: value for name, value in asdict(found.lift).items() if name != "draws"}
    measured = {"similarity": found.similarity, "sizes": list(found.sizes), "images_per_class": found.size.per_class}
    plain = {name: value for name, value in asdict(found).items() if name not in ("lift", "seconds")}
    return plain | measured | {"lift": lift, "misplaced": place.misplaced}


def _rival_data(rival: Rival, p_permutation: float | None, place: Place) -> dict[str, Any]:
    cell, best = place.cell(rival.strategy), place.cell(place.verdict.best)
    assert cell is not None
    assert best is not None
    more: dict[str, Any] = {}
    if rival.difference is not None:
        ends = rival.difference.bootstrap
        more = {
            "bootstrap": list(ends) if ends else None,
            "bootstrap_over_seeds_and_images": difference_interval(cell, best, place.metric),
            "cohens_d": rival.difference.effect,
            "superiority": rival.difference.superiority,
        }
    needed = rival.seeds_needed(place.metric.margin)
    return asdict(rival) | more | {"p_permutation_holm": p_permutation, "seeds_needed": needed}


def _cell_data(cell: Cell, metric: Metric) -> dict[str, Any]:
    runs = [run for setting in cell.settings for run in setting.runs]
    ends = bootstrap_interval([run.test[metric.name] for run in cell.chosen.runs])
    return {
        "strategy": cell.strategy,
        "pretrained": cell.pretrained,
        "params_trainable": cell.params_trainable,
        "params_total": cell.params_total,
        "seconds": cell.seconds,
        "seconds_of_all_runs": math.fsum(run.seconds for run in runs),
        "watt_hours_of_all_runs_estimate": watt_hours(runs),
        "lr": cell.chosen.lr,
        "edge": cell.edge,
        "test": asdict(cell.chosen.test)
        | {
            "bootstrap": list(ends) if ends else None,
            "bootstrap_over_seeds_and_images": mean_interval(cell.chosen, metric),
        },
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


def provenance(study: Study) -> list[tuple[str, str]]:
    """(name, values) of everything that the runs say they ran on; several values where they differ."""
    seen: dict[str, set[str]] = {}
    for result in study.results:
        told = {"git revision": result.git_revision or "unknown", "device": result.device or "unknown", **result.versions}
        for name, value in told.items():
            seen.setdefault(name, set()).add(str(value))
    return [(name, ", ".join(sorted(values))) for name, values in seen.items()]
