"""What a verdict may claim: simulated in memory, many times over, with seeds fixed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fourfold.study.cells import Cell, form
from fourfold.study.metric import Metric
from fourfold.study.results import Result, read_result
from fourfold.study.verdict import compare, judge, permutation_p_values

from .synthetic import write_run

ACCURACY = Metric("acc")
STRATEGIES = ("classifier_only", "last_blocks", "full", "from_scratch")


@pytest.fixture
def run(tmp_path: Path) -> Result:
    """One finished run, of which the others are made."""
    result = read_result(write_run(tmp_path))
    assert isinstance(result, Result)
    return result


def cell(run: Result, strategy: str, val: Sequence[float], test: Sequence[float], manifests: Sequence[str] = ()) -> Cell:
    """One learning rate, one run for each seed."""
    runs = [
        replace(
            run,
            strategy=strategy,
            pretrained=strategy != "from_scratch",
            params_trainable=STRATEGIES.index(strategy),
            seed=seed,
            manifest_hash=manifests[seed] if manifests else f"images of seed {seed}",
            val={"acc": float(v)},
            test={"acc": float(t)},
        )
        for seed, (v, t) in enumerate(zip(val, test, strict=True))
    ]
    return form(strategy, runs, ACCURACY)


@pytest.mark.parametrize("strategies", [2, 3, 4])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_pure_noise_has_a_winner_less_than_once_in_twenty(run: Result, strategies: int, seeds: int) -> None:
    """Accuracies of guessing on 250 validation and 600 test images, with what a seed's images do to every strategy."""
    draws = np.random.default_rng([strategies, seeds])
    studies, claims = 400, 0
    for _ in range(studies):
        luck = np.clip(draws.normal(0.1, 0.01, seeds), 0.02, 0.3)
        cells = [
            cell(run, name, draws.binomial(250, luck) / 250, draws.binomial(600, luck) / 600)
            for name in STRATEGIES[:strategies]
        ]
        claims += judge(cells, ACCURACY).winner is not None
    assert claims / studies <= 0.05


def test_a_real_difference_is_found(run: Result) -> None:
    """The other half of the truth: five seeds and five points, with a spread of two, do name the winner."""
    draws = np.random.default_rng(0)
    named = [
        judge(
            [
                cell(run, "full", scores := draws.normal(0.85, 0.01, 5), scores + draws.normal(0, 0.01, 5)),
                cell(run, "classifier_only", scores - 0.05, scores - 0.05 + draws.normal(0, 0.01, 5)),
            ],
            ACCURACY,
        ).winner
        for _ in range(50)
    ]
    assert named.count("full") >= 45
    assert named.count("classifier_only") == 0


def test_seeds_that_saw_other_images_are_no_pair(run: Result) -> None:
    first = cell(run, "full", [0.9, 0.9, 0.9], [0.9, 0.8, 0.9], manifests=["a", "b", "c"])
    second = cell(run, "classifier_only", [0.5, 0.5, 0.5], [0.5, 0.5, 0.7], manifests=["a", "b", "other"])
    difference = compare(first, second, ACCURACY)
    assert difference is not None
    assert difference.values == pytest.approx((0.4, 0.3))


def test_images_that_another_split_seed_chose_are_repetitions_of_their_own(run: Result) -> None:
    runs = [replace(run, manifest_hash=f"split {i}", test={"acc": 0.8 + i / 100}) for i in range(3)]
    assert form("full", runs, ACCURACY).chosen.test.n == 3


@pytest.mark.parametrize(
    ("scratch", "status", "flagged"),
    [
        ([0.90, 0.91, 0.92], "negative", True),
        ([0.80, 0.83, 0.82], "no benefit", True),  # at least as good, though not shown to be better
        ([0.80, 0.81, 0.78], "no benefit", False),
        ([0.50, 0.52, 0.51], "helps", False),
    ],
)
def test_negative_transfer_is_flagged_where_scratch_is_at_least_as_good(
    run: Result, scratch: list[float], status: str, flagged: bool
) -> None:
    cells = [cell(run, "full", [0.8] * 3, [0.80, 0.81, 0.82]), cell(run, "from_scratch", [0.7] * 3, scratch)]
    transfer = judge(cells, ACCURACY).transfer
    assert transfer is not None
    assert (transfer.status, transfer.flagged) == (status, flagged)


def test_one_seed_flags_nothing(run: Result) -> None:
    transfer = judge([cell(run, "full", [0.8], [0.8]), cell(run, "from_scratch", [0.7], [0.9])], ACCURACY).transfer
    assert transfer is not None
    assert not transfer.flagged


def test_a_tie_says_how_many_seeds_would_settle_it_and_more_noise_needs_more(run: Result) -> None:
    needed = []
    for spread in (0.01, 0.03):
        best = cell(run, "full", [0.9] * 4, [0.80, 0.80, 0.80, 0.80])
        other = cell(run, "classifier_only", [0.8] * 4, [0.79 + spread, 0.79 - spread, 0.79 + spread, 0.79 - spread])
        (rival,) = judge([best, other], ACCURACY).rivals
        assert rival.status == "tied"
        needed.append(rival.seeds_needed(ACCURACY.margin))
    assert needed[0] is not None
    assert needed[1] is not None
    assert 4 < needed[0] < needed[1]


def test_the_permutation_p_values_are_corrected_for_their_number(run: Result) -> None:
    draws = np.random.default_rng(0)
    cells = [cell(run, name, [0.9 - i / 10] * 6, draws.normal(0.9 - i / 10, 0.01, 6)) for i, name in enumerate(STRATEGIES)]
    p_values = permutation_p_values(judge(cells, ACCURACY).rivals)
    assert p_values == {name: pytest.approx(3 * 2.0**-5) for name in STRATEGIES[1:]}  # all six signs agree, three comparisons
