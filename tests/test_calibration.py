"""The calibration finds the thresholds that made-up figures hide, and ranks a dial that it is given."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts/calibrate_quadrants.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("calibrate_quadrants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases(script, near: float, far: float):
    """Targets whose best strategy is that of the advice, at every lift, if the thresholds are `near` and `far`."""
    found = []
    for target, (_, distance) in script.DIALLED.items():
        lift = 1.02 - distance if target.startswith("textures") else 0.97 - distance
        level = "similar" if lift >= near else "middle" if lift >= far else "different"
        for size in script.SIZES:
            best = script.EVIDENCE[level, size].suggested
            accuracy = {strategy: 0.9 if strategy == best else 0.8 for strategy in script.STRATEGIES}
            measured = {"lift": [lift, lift], "probe": [distance, distance]}
            found.append(script.Case(target, size, measured, accuracy, dict.fromkeys(script.STRATEGIES, 1e-3)))
    return found


@pytest.mark.parametrize(("near", "far"), [(0.7, 0.3), (0.55, 0.2)])
def test_thresholds_that_cost_nothing_are_found(script, near: float, far: float) -> None:
    made = cases(script, near, far)
    (found_near, found_far), ((low, high), (lower, higher)) = script.thresholds(made)
    assert low <= near <= high
    assert lower <= far <= higher
    assert all(regret == 0 for case in made for regret in script.regrets(case, found_near, found_far))
    assert max(regret for case in made for regret in script.regrets(case, 1.0, 0.99)) == pytest.approx(0.1)


def test_a_measure_that_falls_with_the_distance_ranks_it(script) -> None:
    made = cases(script, 0.7, 0.3)
    assert script.correlation(made, "lift", "textures", "small") == pytest.approx(1)
    assert script.correlation(made, "probe", "clutter", "large") == pytest.approx(-1)


def test_what_is_shipped_lies_where_the_script_writes(script) -> None:
    from fourfold.compose import compose

    levels = compose([]).place
    assert 0 < levels.different < levels.similar < 1
    assert all(0 < low <= high for low, high in levels.rates.values())
    assert list(levels.rates) == ["similar", "middle", "different"]
