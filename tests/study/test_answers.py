"""Intervals over test images come from what the runs answered, and from nothing that does not fit their scores."""

from pathlib import Path

import numpy as np
import pytest

from fourfold.study import answers
from fourfold.study.metric import Metric
from fourfold.study.quadrants import Place, read_study
from fourfold.study.statistics import hierarchical_interval

from .synthetic import write_run

ACCURACY = Metric("acc")
IMAGES = 200


def write(folder: Path, strategy: str, seed: int, targets: np.ndarray, right: np.ndarray) -> Path:
    run = write_run(folder, strategy=strategy, seed=seed, val=float(right.mean()), test=float(right.mean()))
    predicted = np.where(right, targets, (targets + 1) % 4)
    np.savez_compressed(run / "answers.npz", target=targets, predicted=predicted, confidence=np.ones(len(targets)))
    return run


@pytest.fixture
def drawn() -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Targets, and which of three seeds of two strategies answers which image rightly."""
    draws = np.random.default_rng(0)
    hard = draws.normal(0, 1, IMAGES)
    right = {
        name: [draws.normal(0, 0.5, IMAGES) + hard < edge for _ in range(3)]
        for name, edge in (("full", 1.0), ("classifier_only", 0.7))
    }
    return draws.integers(4, size=IMAGES).astype(np.int32), right


def place_of(folder: Path) -> Place:
    (place,) = read_study(folder).places
    return place


def test_means_and_paired_differences_are_those_of_the_answers(tmp_path: Path, drawn: tuple) -> None:
    targets, right = drawn
    for name, each in right.items():
        for seed, values in enumerate(each):
            write(tmp_path, name, seed, targets, values)
    place = place_of(tmp_path)
    full, head = place.cell("full"), place.cell("classifier_only")
    assert full is not None
    assert head is not None
    assert answers.mean_interval(full.chosen, ACCURACY) == hierarchical_interval(right["full"], same_images=True)
    lost = [a.astype(int) - b for a, b in zip(right["classifier_only"], right["full"], strict=True)]
    paired = answers.difference_interval(head, full, ACCURACY)
    assert paired == hierarchical_interval(lost, same_images=True)
    assert paired is not None
    apart = [interval for cell in (full, head) if (interval := answers.mean_interval(cell.chosen, ACCURACY))]
    assert paired[1] - paired[0] < sum(high - low for low, high in apart)  # what is hard for both cancels out
    assert answers.mean_interval(full.chosen, Metric("macro_f1")) is None  # not a mean over images


def test_seeds_with_test_images_of_their_own_are_drawn_apart(tmp_path: Path, drawn: tuple) -> None:
    targets, right = drawn
    for seed, values in enumerate(right["full"]):
        write(tmp_path, "full", seed, np.roll(targets, seed), values)
    (cell,) = place_of(tmp_path).cells
    assert answers.mean_interval(cell.chosen, ACCURACY) == hierarchical_interval(right["full"], same_images=False)


@pytest.mark.parametrize("harm", ["missing", "torn", "of another score", "of other images"])
def test_answers_that_do_not_fit_give_no_interval(tmp_path: Path, drawn: tuple, harm: str) -> None:
    targets, right = drawn
    for name, each in right.items():
        for seed, values in enumerate(each):
            run = write(tmp_path, name, seed, targets, values)
    file = run / "answers.npz"  # of classifier_only, the last seed
    if harm == "missing":
        file.unlink()
    elif harm == "torn":
        file.write_bytes(file.read_bytes()[:100])
    elif harm == "of another score":
        np.savez_compressed(file, target=targets, predicted=targets, confidence=np.ones(IMAGES))
    else:
        predicted = np.where(np.roll(right["classifier_only"][2], 1), np.roll(targets, 1), -1)
        np.savez_compressed(file, target=np.roll(targets, 1), predicted=predicted, confidence=np.ones(IMAGES))
    place = place_of(tmp_path)
    full, head = place.cell("full"), place.cell("classifier_only")
    assert full is not None
    assert head is not None
    assert answers.difference_interval(head, full, ACCURACY) is None
    assert (answers.mean_interval(head.chosen, ACCURACY) is None) == (harm != "of other images")
    assert answers.mean_interval(full.chosen, ACCURACY) is not None
