"""What people look at in the morning: a table on the console, and one HTML file with its figures beside it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from fourfold.config import ConfigError, nearest
from fourfold.files import write_json, write_text
from fourfold.report.table import print_table
from fourfold.study.quadrants import Study, read_study

FORMATS = ("html", "md", "json", "csv", "latex", "pdf")
COMPARED = ("md", "json")


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


def build(folder: Path, form: str = "html") -> Path:
    """Write the report of the runs at or below `folder` into it.

    Works at any time: on a study that has not finished, the report shows what there is and names what is missing.

    Args:
        form: One of FORMATS. `html` is the page, with `report.json` and `figures/` beside it; `latex` has its literature in
            `report.bib`; `pdf` is the page as a browser prints it.

    Returns:
        The path of what was asked for.

    Raises:
        ConfigError: the format is unknown, or there is no browser for a PDF.
    """
    _refuse_unknown(form, FORMATS)
    study = read_study(folder)
    if form in ("html", "pdf"):
        path = _write(study)
        return path if form == "html" else _printed(path)
    if form == "json":
        return _numbers(study)
    from fourfold.report import formats, methods

    if form == "latex":
        write_text(folder / "report.bib", methods.bibtex(study) + "\n")
    name, told = formats.TEXTS[form]
    write_text(folder / name, told(study))
    return folder / name


def compare(first: Path, second: Path, form: str | None = None, console: Console | None = None) -> Path:
    """Print what is different between two studies, and write it into the second one's folder as Markdown or JSON.

    Returns:
        The path of the file.

    Raises:
        ConfigError: the format is unknown.
    """
    _refuse_unknown(form or "md", COMPARED)
    from fourfold.report import comparison

    found = comparison.compare(read_study(first), read_study(second))
    comparison.show(found, console)
    if form == "json":
        write_json(path := second / "comparison.json", _plain(comparison.plain(found)))
    else:
        write_text(path := second / "comparison.md", comparison.markdown(found))
    return path


def _refuse_unknown(form: str, allowed: tuple[str, ...]) -> None:
    if form not in allowed:
        raise ConfigError(f"--format={form} is not one of {', '.join(allowed)}{nearest(form, allowed)}")


def _write(study: Study) -> Path:
    from fourfold.report import gallery, page  # matplotlib: half a second that the table alone does not need

    path = study.folder / "report.html"
    gallery.write(study, study.folder / "figures")
    _numbers(study)
    write_text(path, page.render(study))
    return path


def _numbers(study: Study) -> Path:
    from fourfold.report import numbers

    path = study.folder / "report.json"
    write_json(path, _plain(numbers.data(study)))
    return path


def _printed(page: Path) -> Path:
    from fourfold.report.formats import print_pdf

    print_pdf(page, page.with_suffix(".pdf"))
    return page.with_suffix(".pdf")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
