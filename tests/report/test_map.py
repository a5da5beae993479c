"""The map shows each data set where it was measured, says who won there, and what lies elsewhere than the study put it."""

import csv
import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from fourfold.advice import EVIDENCE
from fourfold.config import PlaceConfig
from fourfold.files import write_json
from fourfold.placement import FILE, Placement, Size
from fourfold.report import build, study_map
from fourfold.report.canvas import PALETTE, color, styled
from fourfold.report.positions import displaced, missing, positions
from fourfold.study.quadrants import Study, read_study
from fourfold.transferability import Lift
from study.synthetic import write_plausible

LEVELS = PlaceConfig("default", 0.86, 0.5, 20, 100, {"similar": [1, 2], "middle": [1, 2], "different": [1, 2]}, 2000, 10, 2)
# lift and interval by data set and images per class: handwritten digits lie nearer than the study says
LIFTS = {
    ("glyph_digits", 5): (0.89, 0.79, 0.97), ("glyph_digits", 100): (0.98, 0.97, 0.99),
    ("digits", 5): (0.91, 0.85, 0.95), ("digits", 100): (0.82, 0.75, 0.89),
    ("textures", 5): (-0.03, -0.15, 0.16), ("textures", 100): (0.18, 0.14, 0.21),
}  # fmt: skip


def placement(per_class: int, value: float | None, low: float | None = None, high: float | None = None) -> Placement:
    lift = Lift(value, low, high, 0.9, 0.2, None if value is not None else "too few images")
    return Placement(lift, 0.1, 0.1, None, 10 * per_class, Size(10 * per_class, per_class, per_class, 10, {}), {}, LEVELS, 1.0)


def write_placements(study: Path) -> None:
    """As a survey leaves them: of the data and the backbone of each place's own runs."""
    kept = {}
    for place in read_study(study).places:
        assert place.source is not None
        shots = int(place.train_size.split()[0])
        found = placement(shots, *LIFTS[place.dataset, shots])
        of = {name: place.source.config[name] for name in ("dataset", "model", "seed")}
        plain = {**found.__dict__, "size": found.size.__dict__, "levels": LEVELS.__dict__, "of": of}
        plain["lift"] = {name: value for name, value in found.lift.__dict__.items() if name != "draws"}
        kept[place.title] = plain
    write_json(study / FILE, kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_plausible(tmp_path_factory.mktemp("map") / "mapped", seeds=3, rates=(1e-2,))
    write_placements(study)
    return study


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study(folder)


def drawn(study: Study) -> tuple[Figure, Axes]:
    with styled():
        figure, numbered = study_map.figure(study, study_map.WIDE)
        figure.canvas.draw()
    assert not numbered
    return figure, figure.axes[0]


def test_each_mark_stands_where_the_data_were_measured(study: Study) -> None:
    _, axes = drawn(study)
    marks = [line for line in axes.lines if line.get_markersize() == 6.5 and line.get_marker() != "None"]
    spots = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line for line in marks}
    assert set(spots) == {(value, float(shots)) for (_, shots), (value, _, _) in LIFTS.items()}
    for place in study.places:
        assert place.placement is not None
        mark = spots[place.placement.lift.value, place.placement.size.per_class]  # type: ignore[index]
        winner = place.verdict.winner
        assert mark.get_markerfacecolor() == (color(study, winner) if winner else PALETTE["paper"])
    low = axes.transData.transform([(0.5, 20)])[0]
    for corner, name in (((-0.15, 1.3), "different\nsmall"), ((1.0, 390), "similar\nlarge")):
        (text,) = [each for each in axes.texts if each.get_text() == name]
        box, spot = text.get_window_extent(), axes.transData.transform([corner])[0]
        assert ((box.x0 + box.x1) / 2 < low[0]) == (spot[0] < low[0])
        assert ((box.y0 + box.y1) / 2 < low[1]) == (spot[1] < low[1])


@pytest.mark.parametrize("width", [study_map.WIDE, study_map.WIDTH])
def test_no_label_covers_another_or_leaves_the_map(study: Study, width: float) -> None:
    with styled():
        figure, numbered = study_map.figure(study, width)
        figure.canvas.draw()
    assert not numbered
    (axes,) = figure.axes
    boxes = {text.get_text() + str(number): text.get_window_extent() for number, text in enumerate(axes.texts)}
    assert len(boxes) == 6 + 2 * 6
    for box in boxes.values():
        assert axes.bbox.x0 - 2 <= box.x0
        assert box.x1 <= axes.bbox.x1 + 2
    for (one, box), (other, another) in itertools.combinations(boxes.items(), 2):
        across = min(box.x1, another.x1) - max(box.x0, another.x0)
        up = min(box.y1, another.y1) - max(box.y0, another.y0)
        assert across <= 1 or up <= 0.25 * min(box.height, another.height), f"{one} covers {other}"  # lines of a label touch


def test_names_that_would_cover_each_other_give_way_to_the_numbers_of_the_table(study: Study) -> None:
    crowd = tuple(replace(place, placement=placement(5, 0.6 + i / 100, 0.5, 0.7)) for i, place in enumerate(study.places * 3))
    with styled():
        figure, numbered = study_map.figure(replace(study, places=crowd), study_map.WIDTH)
    assert numbered
    (axes,) = figure.axes
    assert sorted(int(text.get_text()) for text in axes.texts if text.get_text().isdigit()) == list(range(1, 19))
    assert len(positions(replace(study, places=crowd))) == 18


def test_what_lies_elsewhere_is_seen_and_said(study: Study, folder: Path) -> None:
    away = [place.title for place in study.places if place.misplaced]
    assert away == ["middle · small"]  # digits at .91: the study calls it middle, the lift similar
    assert displaced(study) == "In 1 of 6 quadrants the data measure as another: middle · small as similar · small."
    _, axes = drawn(study)
    (ring,) = [line for line in axes.lines if line.get_color() == PALETTE["textbook"]]
    assert (float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) == (0.91, 5.0)
    page = build(folder).read_text(encoding="utf-8")
    assert re.findall(r'<td class="attention">(.*?)</td>', page) == ["similar · small"]
    assert "not where the study put it" in page
    assert (folder / "figures/map.svg").exists()
    assert (folder / "figures/map.png").exists()


def test_a_size_between_is_not_elsewhere(study: Study) -> None:
    (place,) = [place for place in study.places if place.title == "middle · large"]
    between = replace(place, placement=placement(40, 0.7, 0.6, 0.8))
    assert not between.misplaced
    assert replace(place, placement=placement(5, 0.7, 0.6, 0.8)).misplaced
    assert not replace(place, placement=placement(5, None)).misplaced


def test_without_a_measurement_the_report_says_how_to_get_one(tmp_path: Path) -> None:
    study = write_plausible(tmp_path / "study", seeds=2, rates=(1e-2,), places=1)
    page = build(study).read_text(encoding="utf-8")
    assert 'id="map"' not in page
    assert f"<code>fourfold place {study}</code>" in page
    (study / FILE).write_text('{"torn": ', encoding="utf-8")
    assert 'id="map"' not in build(study).read_text(encoding="utf-8")


def test_a_lift_that_is_undefined_has_a_line_but_no_mark(study: Study) -> None:
    places = tuple(replace(place, placement=placement(5, None)) for place in study.places)
    unknown = replace(study, places=places)
    assert study_map.panels(unknown) == ("", "", False)
    assert [each.lift for each in positions(unknown)] == ["undefined"] * 6
    assert displaced(unknown) == ""
    assert missing(unknown) == ""


def test_the_json_names_what_the_place_predicts(folder: Path) -> None:
    numbers = json.loads(build(folder, "json").read_text(encoding="utf-8"))
    assert [each["verdict"]["predicted"]["name"] for each in numbers["places"]][:2] == ["classifier_only", "last_blocks"]


def test_the_regret_of_a_prediction_is_its_paired_difference_to_the_choice(folder: Path, study: Study) -> None:
    """Against a loop over the runs and scipy's paired interval; the prediction is the evidence of the measured quadrant."""
    rows = list(csv.DictReader(io.StringIO(build(folder, "csv").read_text(encoding="utf-8"))))
    shown = 0
    for place in study.places:
        row = next(each for each in rows if each["place"] == place.title)
        found = place.placement
        assert found is not None
        predicted = place.cell(EVIDENCE[str(found.similarity), found.sizes[0]].suggested)
        best = place.cell(place.verdict.best)
        assert predicted is not None
        assert best is not None
        assert row["predicted"] == predicted.strategy
        lost = [b.test["acc"] - p.test["acc"] for b, p in zip(best.chosen.runs, predicted.chosen.runs, strict=True)]
        if predicted is best:
            assert float(row["predicted_regret"]) == 0.0
            continue
        shown += 1
        low, high = ttest_rel(*zip(*((x, 0.0) for x in lost), strict=True)).confidence_interval(0.95)
        told = [float(row[f"predicted_regret{end}"]) for end in ("", "_low", "_high")]
        assert told == pytest.approx([sum(lost) / len(lost), low, high], abs=1e-9)
    assert shown >= 2


def test_a_prediction_that_was_not_run_and_one_seed_claim_nothing(tmp_path: Path) -> None:
    study = write_plausible(tmp_path / "study", seeds=1, rates=(1e-2,))
    write_placements(study)
    for run in study.glob("textures-*-full-*"):
        shutil.rmtree(run)
    told = {each.title: each for each in positions(read_study(study))}
    assert (told["different · large"].predicted, told["different · large"].predicted_regret) == ("full", "not run")
    assert "(" not in told["similar · large"].predicted_regret
    markdown = build(study, "md").read_text(encoding="utf-8")
    table = [
        line for line in markdown.partition("## Where the data lie")[2].partition("## ")[0].splitlines() if line[:1] == "|"
    ]
    assert len(table) == 2 + 6
    assert {line.count("|") for line in table} == {9}
    assert "**similar · small**" in markdown
