"""A study told in other forms, and beside another: the numbers are those of the study, and each form is well-formed."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fourfold import report
from fourfold.config import ConfigError
from fourfold.report import comparison, costs, methods
from fourfold.study.quadrants import read_study
from study.synthetic import write_run

SCORES = {"full": (0.90, 0.91, 0.92), "classifier_only": (0.80, 0.82, 0.81), "from_scratch": (0.70, 0.69, 0.71)}


def write_study(folder: Path, gain: float = 0.0, spread: float = 1.0) -> Path:
    for strategy, scores in SCORES.items():
        for seed, score in enumerate(scores):
            better = gain * (1 + 0.1 * spread * seed) if strategy == "full" else 0.0
            write_run(
                folder, strategy=strategy, seed=seed, val=score, test=score + better, quadrant=("similar", "small", "full"),
                extra={"scheduler": {"name": "cosine"}},
            )  # fmt: skip
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "birds & bees")


def test_the_csv_has_a_row_for_each_strategy_with_full_precision(study: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(report.build(study, "csv").read_text(encoding="utf-8"))))
    assert [row["strategy"] for row in rows] == ["classifier_only", "full", "from_scratch"]
    full = rows[1]
    assert float(full["test_mean"]) == pytest.approx(0.91)
    assert (full["winner"], full["chosen"], full["difference"]) == ("1", "1", "")
    assert float(rows[0]["difference"]) == pytest.approx(-0.10)
    assert float(rows[0]["p_permutation_holm"]) == pytest.approx(2 * 0.25)
    assert float(rows[0]["superiority"]) == 0.0


def test_the_markdown_tables_are_whole(study: Path) -> None:
    text = report.build(study, "md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {line.count("|") for line in rows} == {12}
    assert "**91.0 ± 1.0**" in text
    assert "full wins" in text


def test_where_the_answers_are_known_every_form_tells_the_interval_over_seeds_and_images(tmp_path: Path) -> None:
    right = np.arange(600) < 540
    for name, shift in (("full", 0), ("classifier_only", 30)):
        for seed in range(2):
            answered = right if shift == 0 else np.arange(600) < 540 - shift
            run = write_run(tmp_path, strategy=name, seed=seed, val=float(answered.mean()), test=float(answered.mean()))
            np.savez_compressed(run / "answers.npz", target=np.zeros(600), predicted=~answered, confidence=np.ones(600))
    head, full = csv.DictReader(io.StringIO(report.build(tmp_path, "csv").read_text(encoding="utf-8")))
    low, high = float(full["test_images_low"]), float(full["test_images_high"])
    assert (low, high) == pytest.approx((0.9 - 0.024, 0.9 + 0.024), abs=0.003)  # 1.96 sqrt(.9 x .1 / 600)
    assert float(head["difference_images_low"]) == pytest.approx(-0.05 - 0.0175, abs=0.002)  # 30 of 600 lost: .05 x .95 / 600
    assert full["difference_images_low"] == ""
    told = f"{100 * low:.1f} to {100 * high:.1f}"
    assert told in report.build(tmp_path, "md").read_text(encoding="utf-8")
    assert told in report.build(tmp_path).read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert numbers["places"][0]["cells"][1]["test"]["bootstrap_over_seeds_and_images"] == [low, high]


def test_the_latex_is_escaped_and_balanced(study: Path) -> None:
    text = report.build(study, "latex").read_text(encoding="utf-8")
    assert r"birds \& bees" in text
    assert r"classifier\_only" in text
    assert re.findall(r"(?<!\\)[_#]", text) == []
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("$") % 2 == 0
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in rows}) == 1
    assert "@article{holm1979simple" in (study / "report.bib").read_text(encoding="utf-8")


def test_the_json_is_the_pages(study: Path) -> None:
    numbers = json.loads(report.build(study, "json").read_text(encoding="utf-8"))
    (place,) = numbers["places"]
    rival = place["verdict"]["rivals"][0]
    assert (rival["strategy"], rival["superiority"], rival["seeds_needed"]) == ("classifier_only", 0.0, 3)
    assert rival["cohens_d"] < -5
    assert place["verdict"]["transfer"]["flagged"] is False


def test_an_unknown_format_is_refused_with_the_nearest(study: Path) -> None:
    with pytest.raises(ConfigError, match=r"--format=htlm is not one of html, .* did you mean html"):
        report.build(study, "htlm")


def test_without_a_browser_a_pdf_is_refused_in_one_sentence(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(ConfigError, match=r"needs Chromium or Chrome, and none is installed: .*report.html"):
        report.build(study, "pdf")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_prints_the_pdf(study: Path) -> None:
    assert report.build(study, "pdf").read_bytes().startswith(b"%PDF")


def test_a_browser_that_fails_is_told_of(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "false")
    with pytest.raises(ConfigError, match=r"false could not print .*report.html"):
        report.build(study, "pdf")


def test_the_methods_paragraph_has_the_studys_numbers(study: Path) -> None:
    told = methods.paragraph(read_study(study))
    for words in ("3 transfer strategies", "micro_resnet", "digits (5 per class)", "the learning rate was 0.001", "3 seeds"):
        assert words in told
    assert "250 of them; 600 test images" in told
    assert methods.paragraph(read_study(study / "nothing")) == ""


def test_the_methods_paragraph_tells_of_cross_validation(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, seed=seed, extra={"dataset": {"folds": 5}}, cut=["val", "test"])
    told = methods.paragraph(read_study(tmp_path))
    assert (
        "Each cell was repeated with 5 seeds, which test another of 5 stratified folds each, and draw the training and" in told
    )


@pytest.mark.parametrize(
    ("cut", "split_seed", "says"),
    [
        (["val", "test"], None, "which draw the training, validation and test images, the new head and the order"),
        (["val"], None, "which draw the training and validation images, the new head"),
        ([], None, "which draw the training images, the new head"),
        (["val", "test"], 0, "which draw the new head and the order"),
    ],
)
def test_the_methods_paragraph_says_what_a_seed_decides(
    cut: list[str], split_seed: int | None, says: str, tmp_path: Path
) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, extra={"dataset": {"split_seed": split_seed}}, cut=cut)
    assert says in methods.paragraph(read_study(tmp_path))


def test_what_is_cited_is_what_was_used(study: Path) -> None:
    write_run(study, strategy="lp_ft", model="resnet18", extra={"regularizer": {"name": "l2_sp"}})
    keys = methods.keys(read_study(study))
    assert {"kumar2022finetuning", "he2016deep", "li2018explicit", "loshchilov2019decoupled", "loshchilov2017sgdr"} <= keys
    assert {"dosovitskiy2021image", "akiba2019optuna"}.isdisjoint(keys)
    entries = methods.bibtex(read_study(study))
    assert {re.sub(r"@\w+\{", "", line).rstrip(",") for line in entries.splitlines() if line.startswith("@")} == keys


def test_every_entry_that_may_be_cited_is_in_the_file_and_well_formed() -> None:
    text = methods.BIBLIOGRAPHY.read_text(encoding="utf-8")
    known = set(re.findall(r"^@\w+\{(\w+),$", text, flags=re.MULTILINE))
    assert {key for group in methods.CITED.values() for key in group.values()} | set(methods.ALWAYS) <= known
    assert text.count("{") == text.count("}")


def test_the_front_is_what_no_point_beats_in_both() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (3.0, 0.7), (4.0, 0.9)]
    beaten = [any((x <= a and y >= b) and (x, y) != (a, b) for x, y in points) for a, b in points]
    assert costs.front(points) == [i for i, each in enumerate(beaten) if not each]


def test_two_studies_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first, second = write_study(tmp_path / "before"), write_study(tmp_path / "after", gain=0.05)
    found = comparison.compare(read_study(first), read_study(second))
    of = {change.strategy: change for change in found.changes}
    assert of["full"].paired
    assert of["full"].difference is not None
    assert of["full"].difference.values == pytest.approx((0.05, 0.055, 0.06))
    assert (of["full"].status, of["classifier_only"].status) == ("better", "same")
    backwards = {change.strategy: change.status for change in comparison.compare(read_study(second), read_study(first)).changes}
    assert backwards["full"] == "worse"
    console = Console(record=True, width=80)
    path = report.compare(first, second, console=console)
    told = console.export_text()
    assert "1 better, 0 worse, 2 not shown to differ" in told
    assert "96.5" in told
    assert "| similar · small | full |" in path.read_text(encoding="utf-8")
    assert json.loads(report.compare(first, second, "json", Console(quiet=True)).read_text())["statuses"].count("better") == 1


def test_studies_of_other_images_are_compared_as_independent_runs(tmp_path: Path) -> None:
    first, second = tmp_path / "before", tmp_path / "after"
    for seed in range(3):
        write_run(first, seed=seed, test=0.80 + seed / 100)
        write_run(second, seed=seed, test=0.90 + seed / 100, manifest_hash=f"{seed}" * 64)
    (change,) = comparison.compare(read_study(first), read_study(second)).changes
    assert not change.paired
    assert change.status == "better"


def test_studies_without_anything_in_common_say_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a", dataset="digits")
    write_run(tmp_path / "b", dataset="textures")
    found = comparison.compare(read_study(tmp_path / "a"), read_study(tmp_path / "b"))
    assert found.changes == ()
    assert (found.only_first, found.only_second) == (("digits · 5 per class",), ("textures · 5 per class",))
    assert "nothing to compare" in comparison.markdown(found)


def test_the_command_line_takes_formats_and_two_studies(tmp_path: Path) -> None:
    from fourfold.cli import command

    first, second = write_study(tmp_path / "a"), write_study(tmp_path / "b")
    assert command(["report", str(first), "--format=csv"]) == 0
    assert command(["report", "--format", "md", str(first)]) == 0
    assert command(["report", str(first), str(second)]) == 0
    assert (second / "comparison.md").exists()
    assert command(["report", str(first), "--format=doc"]) == 2
    assert command(["report", str(first), str(tmp_path / "c")]) == 2
