"""What people look at in the morning: a table on the console, and one HTML file with its figures beside it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from fourfold.files import write_json, write_text
from fourfold.report.table import print_table
from fourfold.study.quadrants import Study, read_study


def finish(folder: Path, console: Console | None = None) -> Path:
    """Print the table of the study in `folder`, write its report, and say where it lies. Returns the report's path."""
    console = console or Console()
    study = read_study(folder)
    print_table(study, console)
    path = _write(study)
    if study.unfinished:
        console.print(f"{len(study.unfinished)} unfinished or failed; the same command finishes what remains.", style="yellow")
    console.print(f"Report: {path}", highlight=False, soft_wrap=True)
    return path


def build(folder: Path) -> Path:
    """Write `report.html`, `report.json` and `figures/` into `folder` from the runs at or below it.

    Works at any time: on a study that has not finished, the report shows what there is and names what is missing.

    Returns:
        The path of `report.html`.
    """
    return _write(read_study(folder))


def _write(study: Study) -> Path:
    from fourfold.report import figures, page  # matplotlib: half a second that the table alone does not need

    path = study.folder / "report.html"
    figures.write_sheets(study, study.folder / "figures")
    write_json(study.folder / "report.json", _plain(page.data(study)))
    write_text(path, page.render(study))
    return path


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
