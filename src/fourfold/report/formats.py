"""A study in other forms than the page: Markdown, LaTeX and CSV tables, and a PDF that a browser prints."""

import csv
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from fourfold.config import ConfigError
from fourfold.report.methods import bibtex, paragraph
from fourfold.report.positions import displaced, foretold, missing, positions
from fourfold.report.wording import (
    between,
    count,
    duration,
    heading,
    headline,
    interval,
    lies,
    p_value,
    percent_sign,
    sentences,
    signed,
    signed_interval,
    spread,
    summary,
)
from fourfold.study.answers import difference_interval, mean_interval
from fourfold.study.quadrants import Place, Study
from fourfold.study.verdict import permutation_p_values

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PRINT_SECONDS = 120


def markdown(study: Study) -> str:
    """The verdict, one table for each place, the methods and the literature, for a README or a wiki."""
    names = [heading(place, study) for place in study.places]
    lines = [f"# {study.name}", "", *(f"{sentence}\n" for sentence in summary(study.places, names))]
    lines += _markdown_positions(study)
    for place, name in zip(study.places, names, strict=True):
        lines += [f"## {name}", "", f"{headline(place)}. {' '.join(sentences(place))}", "", *_markdown_table(place), ""]
    if study.places:
        lines += ["## Methods", "", paragraph(study), "", "```bibtex", bibtex(study), "```"]
    return "\n".join(lines) + "\n"


def _markdown_positions(study: Study) -> list[str]:
    """Where the data lie, and what following an advice costs."""
    found = positions(study)
    if not found:
        return [f"{sentence}\n" for sentence in (missing(study),) if sentence]
    head = ["data", "lift", "images per class", "quadrant measured", "textbook", "regret", "predicted", "regret"]
    rows = [head, ["---", "--:", "--:", "---", "---", "--:", "---", "--:"]]
    for each in found:
        measured = f"**{each.quadrant}**" if each.misplaced else each.quadrant
        rows.append([f"{each.title}: {each.data}", each.lift, each.size, measured, each.textbook, each.textbook_regret])
        rows[-1] += [each.predicted, each.predicted_regret]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return [
        "## Where the data lie",
        "",
        *(f"{sentence}\n" for sentence in (displaced(study), foretold(study)) if sentence),
        *table,
        "",
    ]


def _markdown_table(place: Place) -> list[str]:
    metric = place.metric
    head = ["strategy", f"test {metric.label}{percent_sign(metric)}", "95 % interval", "n", "difference", "95 % interval", "p"]
    head.insert(3, "over seeds and images")
    rows = [[*head, "at", "trained", "time"], ["---", *["--:"] * 7, "---", "--:", "--:"]]
    rivals = {rival.strategy: rival for rival in place.verdict.rivals}
    for cell in place.cells:
        rival, test = rivals.get(cell.strategy), cell.chosen.test
        best = cell.strategy == place.verdict.best
        value = rival.difference.estimate if rival and rival.difference else None
        score = spread(test, metric)
        rows.append(
            [
                cell.strategy,
                f"**{score}**" if best else score,
                interval(test, metric),
                between(mean_interval(cell.chosen, metric), metric),
                str(test.n),
                "chosen" if best else signed(value.mean, metric) if value else "",
                signed_interval(value, metric) if value else "",
                p_value(rival.p_holm) if rival else "",
                cell.chosen.label,
                count(cell.params_trainable),
                duration(cell.seconds),
            ]
        )
    return [f"| {' | '.join(word.replace('|', chr(92) + '|') for word in row)} |" for row in rows]


def latex(study: Study) -> str:
    """One `booktabs` table of places by strategies, and the methods; to be \\input into a paper that uses booktabs."""
    best, tied = r"\textbf{%s}", r"\underline{%s}"
    lines = [
        r"% Needs \usepackage{booktabs}. Bold: best on validation. Underlined: tied with it.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(_caption(study))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(study.strategies)}r}}",
        r"\toprule",
        " & ".join(["", *map(_latex, study.strategies), "$n$"]) + r" \\",
        r"\midrule",
    ]
    for place in study.places:
        scores = []
        for strategy in study.strategies:
            cell = place.cell(strategy)
            if cell is None:
                scores.append("--")
                continue
            told = f"${spread(cell.chosen.test, place.metric).replace(' ± ', chr(92) + 'pm ')}$"
            contender = strategy in place.verdict.contenders
            scores.append((best if strategy == place.verdict.best else tied if contender else "%s") % told)
        counts = sorted({cell.chosen.test.n for cell in place.cells})
        told_counts = "--".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        lines.append(" & ".join([_latex(heading(place, study)), *scores, told_counts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", "", _latex(paragraph(study)), ""]
    return "\n".join(lines)


def _caption(study: Study) -> str:
    metrics = sorted({f"test {place.metric.label}{percent_sign(place.metric)}" for place in study.places})
    return f"{study.name}: mean and standard deviation over n seeds of {' and '.join(metrics) or 'nothing yet'}."


def _latex(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for each, told in {"±": r"$\pm$", "−": "--", "·": r"$\cdot$", "²": "$^2$", "~": r"\textasciitilde{}"}.items():
        escaped = escaped.replace(each, told)
    return escaped


def table(study: Study) -> str:
    """CSV with one row for each strategy of each place; fractions stay 0 to 1, and what is not known is empty."""
    file = io.StringIO()
    columns = [
        "place", "dataset", "train_size", "model", "strategy", "metric", "n", "test_mean", "test_std", "test_low", "test_high",
        "val_mean", "chosen", "contender", "winner", "difference", "difference_low", "difference_high", "p_t_holm",
        "p_permutation_holm", "cohens_d", "superiority", "seeds_needed", "settings", "lr", "edge", "params_trainable",
        "params_total", "seconds", "declared", "lift", "lift_low", "lift_high", "images_per_class", "measured",
        "test_images_low", "test_images_high", "difference_images_low", "difference_images_high",
        *(f"{who}{what}" for who in ("textbook", "predicted") for what in ("", "_regret", "_regret_low", "_regret_high")),
    ]  # fmt: skip
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for place in study.places:
        rivals = {rival.strategy: rival for rival in place.verdict.rivals}
        by_signs, best = permutation_p_values(place.verdict.rivals), place.cell(place.verdict.best)
        assert best is not None, "the best is one of the cells"
        for cell in place.cells:
            rival, test = rivals.get(cell.strategy), cell.chosen.test
            difference = rival.difference if rival else None
            value = difference.estimate if difference else None
            writer.writerow({
                "place": heading(place, study), "dataset": place.dataset, "train_size": place.train_size, "model": place.model,
                "strategy": cell.strategy, "metric": place.metric.name, "n": test.n, "test_mean": test.mean,
                "test_std": test.std, "test_low": test.low, "test_high": test.high, "val_mean": cell.chosen.val.mean,
                "chosen": int(cell.strategy == place.verdict.best), "contender": int(cell.strategy in place.verdict.contenders),
                "winner": int(cell.strategy == place.verdict.winner), "difference": value and value.mean,
                "difference_low": value and value.low, "difference_high": value and value.high,
                "p_t_holm": rival and rival.p_holm, "p_permutation_holm": by_signs.get(cell.strategy),
                "cohens_d": difference and difference.effect, "superiority": difference and difference.superiority,
                "seeds_needed": rival and rival.seeds_needed(place.metric.margin), "settings": cell.chosen.label,
                "lr": cell.chosen.lr, "edge": cell.edge, "params_trainable": cell.params_trainable,
                "params_total": cell.params_total, "seconds": cell.seconds, **_position_columns(place),
                **_over_images("test", mean_interval(cell.chosen, place.metric)),
                **_over_images("difference", difference_interval(cell, best, place.metric) if difference else None),
            })  # fmt: skip
    return file.getvalue()


def _over_images(what: str, ends: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {f"{what}_images_low": low, f"{what}_images_high": high}


def _position_columns(place: Place) -> dict[str, object]:
    """What is the same for all strategies of a place: where it lies, and what following an advice costs."""
    found = place.placement
    told: dict[str, object] = {"declared": place.title if place.quadrant else None}
    if found is not None:
        lift = found.lift
        told |= {"lift": lift.value, "lift_low": lift.low, "lift_high": lift.high, "measured": lies(found)}
        told |= {"images_per_class": found.size.per_class}
    for who, advice in (("textbook", place.verdict.textbook), ("predicted", place.verdict.predicted)):
        regret = advice.regret if advice else None
        told[who] = advice and advice.name
        told[f"{who}_regret"] = 0.0 if advice and advice.status == "chosen" else regret and regret.mean
        told |= {f"{who}_regret_low": regret and regret.low, f"{who}_regret_high": regret and regret.high}
    return told


def print_pdf(page: Path, target: Path) -> None:
    """Let an installed browser print the page, as `Ctrl-P` would.

    Raises:
        ConfigError: there is no browser, or it prints nothing.
    """
    browser = os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ConfigError(
            "--format=pdf needs Chromium or Chrome, and none is installed: install one (Debian: apt install chromium), name "
            f"it in the environment as CHROMIUM, or print {page} from any browser"
        )
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer", f"--user-data-dir={profile}"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses to run as root with it; the page is our own and has no script
        command = [browser, *options, f"--print-to-pdf={target.absolute()}", page.absolute().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PRINT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"{browser} could not print {page} ({error}): print it from any browser") from error
    if done.returncode or not target.exists():
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise ConfigError(f"{browser} could not print {page} ({last}): print it from any browser")


TEXTS: dict[str, tuple[str, Callable[[Study], str]]] = {
    "md": ("report.md", markdown),
    "csv": ("report.csv", table),
    "latex": ("report.tex", latex),
}
