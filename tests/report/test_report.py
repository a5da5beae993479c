"""The report holds the study's numbers, stands alone, and says no more than the data show."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fourfold.report import build, finish, gallery
from fourfold.report.table import print_table
from fourfold.study.quadrants import read_study
from study.synthetic import write_plausible, write_run, write_unfinished


class Page(HTMLParser):
    """What a reader sees, what a browser would fetch, and whether the tags are balanced."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", "".join(self.words).replace("\N{NO-BREAK SPACE}", " "))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href"):
                self.links.append(str(value))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def read(folder: Path) -> Page:
    page = Page(build(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def console() -> Console:
    return Console(record=True, width=100)


@pytest.fixture(scope="module")
def plausible(tmp_path_factory: pytest.TempPathFactory, console: Console) -> Path:
    study = write_plausible(tmp_path_factory.mktemp("report") / "quadrants_embedded", seeds=3, rates=(1e-3, 1e-2))
    write_unfinished(study)
    assert finish(study, console) == study / "report.html"
    return study


def test_every_cell_of_the_study_is_in_the_page(plausible: Path) -> None:
    page = Page((plausible / "report.html").read_text(encoding="utf-8"))
    for place in read_study(plausible).places:
        assert place.title in page.text
        for cell in place.cells:
            assert f"{100 * cell.chosen.test.mean:.1f}" in page.text
            assert f"fourfold -m quadrant={place.quadrant and place.quadrant.name} freeze={cell.strategy}" in page.text
    assert "144 finished runs" in page.text
    assert "3 of 10 epochs done" in page.text
    assert "144 of 144 runs" in page.text
    assert "torch" in page.text


def test_the_page_stands_alone(plausible: Path) -> None:
    html = (plausible / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    without_pictures = re.sub(r"url\(data:image/jpeg;base64,[A-Za-z0-9+/=]+\)", "", html)
    assert re.findall(r"https?:|//[a-z]|@import|<script|<link|data:", without_pictures) == []
    assert all(link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)
    assert "mistakes" in page.ids


def test_every_colour_of_a_picture_follows_the_page(plausible: Path) -> None:
    html = (plausible / "report.html").read_text(encoding="utf-8")
    pictures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}", pictures) == []
    used, defined = set(re.findall(r"var\(--(\w+)\)", html)), set(re.findall(r"--(\w+):", html))
    assert used <= defined


def test_figures_and_numbers_lie_beside_the_page(plausible: Path) -> None:
    for name in (*gallery.KINDS, "ranks"):
        assert (plausible / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (plausible / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((plausible / "report.json").read_text(encoding="utf-8"))
    (place,) = (place for place in numbers["places"] if place["title"] == "different · large")
    assert place["verdict"]["winner"] == "full"
    assert len(place["cells"]) == 4
    assert len(place["cells"][0]["settings"]) == 2
    assert numbers["integrity"]["opened_once"] == 144


@pytest.mark.parametrize(
    ("copies", "says"),
    [
        (None, None),
        ({"val": 1, "test": 0}, "The files of 1 run were compared, byte by byte."),
        ({"val": 0, "test": 2}, "Up to 2 test images that training has as well, in 1 run: their scores flatter"),
    ],
)
def test_test_images_that_were_trained_on_are_told(tmp_path: Path, copies: dict[str, int] | None, says: str | None) -> None:
    write_run(tmp_path, copies=copies)
    text = build(tmp_path).read_text(encoding="utf-8")
    assert ("No test image in training" in text) == (says is not None)
    assert says is None or says in text


def test_building_twice_gives_the_same_page(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert build(tmp_path).read_bytes() == build(tmp_path).read_bytes()


def test_the_console_shows_the_table_and_the_path(plausible: Path, console: Console) -> None:
    text = console.export_text()
    assert str(plausible / "report.html") in text
    study = read_study(plausible)
    cell = study.places[-1].cell("full")
    assert cell is not None
    assert f"{100 * cell.chosen.test.mean:.1f} ± {100 * (cell.chosen.test.std or 0):.1f}*T" in text
    assert "1 unfinished or failed" in text


def test_a_narrow_console_gets_one_row_for_each_strategy(plausible: Path) -> None:
    console = Console(record=True, width=60)
    print_table(read_study(plausible), console)
    lines = console.export_text().splitlines()
    assert sum("from_scratch" in line for line in lines) == 6
    assert max(map(len, lines)) <= 60


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    for strategy, test in (("full", 0.9), ("classifier_only", 0.5)):
        write_run(tmp_path, strategy=strategy, val=test, test=test, quadrant=("similar", "small", "full"))
    page = read(tmp_path)
    assert "With one seed nothing can be claimed" in page.text
    assert "wins" not in page.text
    assert "fourfold quadrant=similar_small freeze=full optimizer.lr=0.001 seed=0" in page.text


def test_one_strategy_has_nothing_to_compare(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed)
    assert "nothing to compare" in read(tmp_path).text


def test_an_empty_study_says_so(tmp_path: Path) -> None:
    write_unfinished(tmp_path)
    page = read(tmp_path)
    assert "No run has finished yet." in page.text
    assert "3 of 10 epochs done" in page.text
    print_table(read_study(tmp_path), Console(record=True))


def test_without_quadrants_the_rows_are_datasets_and_sizes(tmp_path: Path) -> None:
    for shots in (5, 100):
        for model in ("resnet18", "vit_b_16"):
            for seed in range(2):
                for strategy in ("full", "classifier_only"):
                    write_run(tmp_path, shots=shots, model=model, seed=seed, strategy=strategy, test=0.8 + seed / 50)
    page = read(tmp_path)
    for title in ("digits · 5 per class · resnet18", "digits · 100 per class · vit_b_16"):
        assert title in page.text
    assert "comparisons" in page.text
    assert "textbook" not in page.text.split("How it was done")[0]


def test_a_regression_is_told_in_its_own_unit(tmp_path: Path) -> None:
    task: dict[str, Any] = {"task": "regression", "metric": "rmse", "shots": None}
    for seed in range(3):
        write_run(tmp_path, strategy="full", seed=seed, val=12.0, test=12.0 + seed / 10, **task)
        write_run(tmp_path, strategy="classifier_only", seed=seed, val=20.0, test=20.0 + seed / 20, **task)
    page = read(tmp_path)
    assert "full (12.1) is ahead of all others; nearest is classifier_only, −7.95 in RMSE" in page.text
    assert "test RMSE, less is better" in page.text
    assert "under one point" not in page.text.split("How it was done")[0]


def test_failed_runs_are_named_with_their_reason(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    failed = write_unfinished(tmp_path, "failed")
    reason = {"type": "NonFiniteLoss", "message": "the loss is <nan> at step 7", "traceback": "..."}
    (failed / "failure.json").write_text(json.dumps(reason))
    page = read(tmp_path)
    assert "NonFiniteLoss: the loss is <nan> at step 7" in page.text


def test_pure_noise_is_reported_without_a_winner(tmp_path: Path) -> None:
    draw = random.Random(3)
    for strategy in ("classifier_only", "last_blocks", "full", "from_scratch"):
        for seed in range(5):
            write_run(tmp_path, strategy=strategy, seed=seed, val=draw.gauss(0.3, 0.05), test=draw.gauss(0.3, 0.05))
    page = read(tmp_path)
    assert "No single winner; the best cannot be told apart" in page.text
    assert "Too few seeds to be sure" in page.text
    assert "wins" not in page.text


def test_settings_that_were_not_finite_do_not_stop_the_report(tmp_path: Path) -> None:
    for seed in range(2):
        for strategy in ("full", "classifier_only"):
            write_run(tmp_path, strategy=strategy, seed=seed, task="regression", metric="rmse", test=float("nan"), val=1.0)
    read(tmp_path)
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_repeating_quotes_what_a_shell_would_read(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, overrides=["freeze=full", "trainer.tags=[a b]", f"seed={seed}"])
    assert "fourfold -m freeze=full 'trainer.tags=[a b]' seed=0,1" in read(tmp_path).text
