"""All pictures of a report: which kinds there are, and the files that are written of each."""

from pathlib import Path

from fourfold.report import confusion, costs, curves, figures, movement, standings, study_map
from fourfold.report.canvas import Kind, save, styled, write_sheet
from fourfold.study.quadrants import Study
from fourfold.study.ranking import rank

KINDS: dict[str, Kind] = {
    "quadrants": figures.SCORES,
    "differences": figures.DIFFERENCES,
    "learning_rates": figures.LEARNING_RATES,
    "loss_curves": curves.LOSS,
    "validation_curves": curves.VALIDATION,
    "parameters": costs.PARAMETERS,
    "hours": costs.HOURS,
    "weight_changes": movement.WEIGHTS,
    "feature_similarity": movement.FEATURES,
    "confusion": confusion.CONFUSION,
}


def write(study: Study, folder: Path) -> tuple[Path, ...]:
    """Write one sheet for each kind of picture that the study has data for, as SVG and PNG, into `folder`."""
    written = [path for name, kind in KINDS.items() for path in write_sheet(kind, study, folder / name)]
    ranking = rank(study.places)
    if ranking is not None:
        with styled():
            written += save(standings.figure(ranking), folder / "ranks")
    if study_map.points(study):
        with styled():
            written += save(study_map.sheet(study), folder / "map")
    return tuple(written)
