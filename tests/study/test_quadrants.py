"""Choosing on validation, comparing on test, and claiming no more than the data show."""

import random
from pathlib import Path

import pytest

from fourfold.study.integrity import inspect
from fourfold.study.quadrants import Place, arrange, read_study
from fourfold.study.results import collect

from .synthetic import write_plausible, write_run, write_unfinished


def place_of(folder: Path) -> Place:
    (place,) = arrange(collect(folder))
    return place


def write_cell(folder: Path, strategy: str, tests: list[float], *, val: float | None = None, **more: object) -> None:
    for seed, test in enumerate(tests):
        write_run(folder, strategy=strategy, seed=seed, test=test, val=test if val is None else val, **more)  # type: ignore[arg-type]


def test_the_learning_rate_is_chosen_on_validation_though_test_prefers_another(tmp_path: Path) -> None:
    for lr, val, test in ((1e-3, 0.80, 0.99), (3e-3, 0.90, 0.70), (1e-2, 0.85, 0.95)):
        write_cell(tmp_path, "full", [test, test], val=val, lr=lr)
    (cell,) = place_of(tmp_path).cells
    assert cell.chosen.lr == 3e-3
    assert cell.chosen.test.mean == pytest.approx(0.70)
    assert cell.edge is None


def test_equal_validation_takes_the_smaller_rate_and_names_the_edge(tmp_path: Path) -> None:
    for lr in (1e-3, 3e-3, 1e-2):
        write_cell(tmp_path, "full", [0.7, 0.8], lr=lr)
    (cell,) = place_of(tmp_path).cells
    assert cell.chosen.lr == 1e-3
    assert cell.edge == "low"


def test_a_rate_with_fewer_seeds_cannot_win_by_luck(tmp_path: Path) -> None:
    write_cell(tmp_path, "full", [0.8, 0.8, 0.8], lr=1e-3)
    write_cell(tmp_path, "full", [0.99], lr=1e-2)
    (cell,) = place_of(tmp_path).cells
    assert cell.chosen.lr == 1e-3


def test_other_optimizer_keys_are_chosen_too_and_anything_else_makes_a_cell_of_its_own(tmp_path: Path) -> None:
    for decay, val in ((0.0, 0.9), (0.1, 0.8)):
        write_run(tmp_path, val=val, extra={"optimizer": {"weight_decay": decay}})
    write_run(tmp_path, strategy="last_blocks", extra={"freeze_strategy": {"blocks": 1}})
    write_run(tmp_path, strategy="last_blocks", extra={"freeze_strategy": {"blocks": 2}})
    write_run(tmp_path, strategy="last_blocks", extra={"freeze_strategy": {"blocks": 2}, "logger": {"name": "csv"}}, seed=1)
    place = place_of(tmp_path)
    assert [cell.strategy for cell in place.cells] == ["last_blocks blocks=1", "last_blocks blocks=2", "full"]
    full = place.cell("full")
    assert full is not None
    assert full.chosen.swept == {"weight_decay": 0.0}


def test_what_is_added_to_a_strategy_makes_a_row_of_its_own(tmp_path: Path) -> None:
    none = {"regularizer": {"name": "none", "weight": 0.0, "layers": None}}
    held = {"regularizer": {"name": "l2_sp", "weight": 0.01, "layers": None}}
    write_run(tmp_path, quadrant=("similar", "small", "full"), seed=0)  # from before there was such a group
    write_run(tmp_path, quadrant=("similar", "small", "full"), seed=1, extra=none)
    for seed in (0, 1):
        write_run(tmp_path, quadrant=("similar", "small", "full"), seed=seed, val=0.95, extra=held)
    (place,) = read_study(tmp_path).places
    assert [(cell.strategy, len(cell.chosen.runs)) for cell in place.cells] == [("full", 2), ("full + l2_sp", 2)]
    assert place.verdict.textbook is not None
    assert place.verdict.textbook.strategy == "full"  # the textbook means the plain one


def test_a_winner_needs_everyone_else_behind(tmp_path: Path) -> None:
    write_cell(tmp_path, "full", [0.90, 0.91, 0.92, 0.90, 0.91])
    write_cell(tmp_path, "classifier_only", [0.80, 0.82, 0.81, 0.80, 0.82])
    verdict = place_of(tmp_path).verdict
    assert (verdict.winner, verdict.contenders) == ("full", ("full",))
    write_cell(tmp_path, "last_blocks", [0.90, 0.90, 0.92, 0.91, 0.90])
    verdict = place_of(tmp_path).verdict
    assert verdict.winner is None
    assert verdict.contenders == ("full", "last_blocks")
    assert verdict.cheapest == "last_blocks"
    assert {rival.strategy: rival.status for rival in verdict.rivals} == {"last_blocks": "tied", "classifier_only": "behind"}


def test_less_than_a_point_is_a_tie_however_certain(tmp_path: Path) -> None:
    write_cell(tmp_path, "full", [0.9000, 0.9101, 0.9199, 0.9300])
    write_cell(tmp_path, "classifier_only", [0.8950, 0.9050, 0.9150, 0.9249])
    (rival,) = place_of(tmp_path).verdict.rivals
    assert rival.p_holm is not None
    assert rival.p_holm < 1e-3
    assert rival.status == "tied"


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    quadrant = ("similar", "small", "classifier_only")
    for strategy, test in (("full", 0.9), ("classifier_only", 0.5), ("from_scratch", 0.95)):
        write_run(tmp_path, strategy=strategy, test=test, val=test, quadrant=quadrant)
    verdict = place_of(tmp_path).verdict
    assert (verdict.winner, verdict.contenders, verdict.cheapest) == (None, (), None)
    assert {rival.status for rival in verdict.rivals} == {"unknown"}
    assert verdict.textbook is not None
    assert verdict.textbook.status == "unknown"
    assert verdict.transfer is not None
    assert verdict.transfer.status == "unknown"


@pytest.mark.parametrize("strategies", [2, 4])
def test_pure_noise_has_no_winner(tmp_path: Path, strategies: int) -> None:
    draw, claims, studies = random.Random(1), 0, 20
    for study in range(studies):
        for strategy in ("classifier_only", "last_blocks", "full", "from_scratch")[:strategies]:
            for lr in (1e-3, 1e-2):
                for seed in range(5):
                    scores = {"val": draw.gauss(0.3, 0.05), "test": draw.gauss(0.3, 0.05)}
                    write_run(tmp_path / str(study), strategy=strategy, lr=lr, seed=seed, **scores)
        claims += place_of(tmp_path / str(study)).verdict.winner is not None
    assert claims <= 1


def test_regret_and_negative_transfer(tmp_path: Path) -> None:
    quadrant = ("different", "large", "full")
    write_cell(tmp_path, "from_scratch", [0.90, 0.92, 0.91], quadrant=quadrant)
    write_cell(tmp_path, "full", [0.80, 0.81, 0.81], quadrant=quadrant)
    verdict = place_of(tmp_path).verdict
    assert verdict.textbook is not None
    assert verdict.textbook.status == "behind"
    assert verdict.textbook.regret is not None
    assert verdict.textbook.regret.mean == pytest.approx(0.1033, abs=1e-4)
    assert verdict.textbook.regret.low is not None
    assert verdict.textbook.regret.low > 0
    assert verdict.transfer is not None
    assert (verdict.transfer.status, verdict.transfer.pretrained) == ("negative", "full")


def test_a_textbook_choice_that_was_not_run_says_so(tmp_path: Path) -> None:
    write_cell(tmp_path, "full", [0.8, 0.8], quadrant=("similar", "small", "classifier_only"))
    textbook = place_of(tmp_path).verdict.textbook
    assert textbook is not None
    assert textbook.status == "not run"


def test_less_is_better_for_a_regression(tmp_path: Path) -> None:
    regression = {"task": "regression", "metric": "rmse", "shots": None}
    write_cell(tmp_path, "full", [1.0, 1.1, 0.9], lr=1e-3, **regression)
    write_cell(tmp_path, "full", [5.0, 5.0, 5.0], lr=1e-2, **regression)
    write_cell(tmp_path, "classifier_only", [2.0, 2.2, 1.9], **regression)
    place = place_of(tmp_path)
    assert place.metric.name == "rmse"
    assert place.verdict.best == "full"
    full = place.cell("full")
    assert full is not None
    assert full.chosen.lr == 1e-3
    (rival,) = place.verdict.rivals
    assert rival.status == "behind"
    assert rival.difference is not None
    assert rival.difference.estimate.mean == pytest.approx(-1.0333, abs=1e-3)


def test_the_monitored_metric_is_the_one_compared(tmp_path: Path) -> None:
    write_run(tmp_path, metric="balanced_acc", extra={"trainer": {"monitor": "val/balanced_acc"}})
    assert place_of(tmp_path).metric.name == "balanced_acc"


def test_a_whole_study_is_ordered_as_people_read_it(tmp_path: Path) -> None:
    write_plausible(tmp_path / "study")
    write_unfinished(tmp_path / "study")
    study = read_study(tmp_path / "study")
    assert study.name == "study"
    assert len(study.results) == 216
    assert len(study.unfinished) == 1
    assert study.strategies == ("classifier_only", "last_blocks", "full", "from_scratch")
    assert [place.title for place in study.places] == [
        "similar · small", "similar · large", "middle · small", "middle · large", "different · small", "different · large",
    ]  # fmt: skip


def test_integrity_counts_what_breaks_a_rule(tmp_path: Path) -> None:
    moved = [{"phase": 0, "epochs": [0, 9], "tensors": 40, "before": "ab", "after": "cd"}]
    write_run(tmp_path, strategy="classifier_only", seed=0)
    write_run(tmp_path, strategy="classifier_only", seed=1, proof=moved)
    write_run(tmp_path, strategy="full", seed=0, manifest_hash="ff" * 32, copies={"val": 1, "test": 0})
    write_run(tmp_path, strategy="full", seed=1, test_opened=2, copies={"val": 0, "test": 3})
    results = collect(tmp_path)
    seen = inspect(results, arrange(results))
    assert (seen.runs, seen.opened_once, len(seen.opened_otherwise)) == (4, 3, 1)
    assert (seen.proven, len(seen.broken), seen.nothing_frozen, seen.frozen_tensors) == (1, 1, 2, 40)
    assert [manifest.seed for manifest in seen.mixed] == [0]
    assert (seen.compared, seen.copied, seen.most_copies) == (2, 1, 3)


def test_runs_on_other_data_are_rows_of_their_own(tmp_path: Path) -> None:
    for kwargs in ({"distance": 1}, {"distance": 2}):
        for strategy in ("full", "classifier_only"):
            write_run(tmp_path, strategy=strategy, extra={"dataset": {"kwargs": kwargs}})
    places = arrange(collect(tmp_path))
    assert [place.variant for place in places] == [("dataset.kwargs.distance=1",), ("dataset.kwargs.distance=2",)]
    assert all(len(place.cells) == 2 for place in places)


@pytest.mark.parametrize(("source", "rows"), [("torchvision", 1), ("image_folder", 2)])
def test_a_folder_is_other_data_only_where_it_is_the_data(tmp_path: Path, source: str, rows: int) -> None:
    for seed, root in enumerate(("a", "b")):
        write_run(tmp_path, seed=seed, extra={"dataset": {"source": source, "root": root}})
    assert len(arrange(collect(tmp_path))) == rows


def test_where_and_how_a_run_was_made_makes_no_cell_of_its_own(tmp_path: Path) -> None:
    for seed, workers in enumerate((0, 4)):
        write_run(
            tmp_path,
            seed=seed,
            extra={"dataset": {"loader": {"num_workers": workers}, "split_seed": seed}, "trainer": {"device": f"cuda:{seed}"}},
        )
    (cell,) = place_of(tmp_path).cells
    assert cell.chosen.test.n == 2
