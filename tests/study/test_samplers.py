"""Every sampler proposes inside the space and the same again; every pruner ends the hopeless and keeps the best."""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from fourfold.checks import seconds
from fourfold.compose import compose
from fourfold.config import SEARCH_PRUNERS, SEARCH_SAMPLERS, ConfigError
from fourfold.study import samplers
from fourfold.study.samplers import pruner, sampler

LR = {"lr": FloatDistribution(1e-5, 1e-1, log=True)}
CONTINUOUS = {
    **LR,
    "momentum": FloatDistribution(0, 0.99),
    "n": IntDistribution(1, 4),
    "c": CategoricalDistribution(("x", "'1'")),
}
DISCRETE = {"n": IntDistribution(1, 4), "x": FloatDistribution(0, 0.5, step=0.25), "c": CategoricalDistribution(("x", "'1'"))}
EXHAUSTIVE = ("grid", "brute_force")
BOTH = ("maximize", "minimize")

optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(name: str) -> dict[str, BaseDistribution]:
    return DISCRETE if name in EXHAUSTIVE else CONTINUOUS


def needed(name: str) -> None:
    for module in samplers.NEEDS.get(name, {}):
        pytest.importorskip(module)


def values_of(trial: FrozenTrial, count: int) -> list[float]:
    """Best at lr=1e-3, or at the largest n."""
    value = -abs(math.log10(trial.params["lr"]) + 3) if "lr" in trial.params else trial.params["n"]
    return [value, trial.params.get("n", 0.0)][:count]


def searched(
    name: str,
    space: dict[str, BaseDistribution],
    trials: int,
    seed: int = 0,
    directions: Sequence[str] = ("maximize",),
    restart_at: int | None = None,
) -> list[FrozenTrial]:
    """A study that asks, tells, and may change its process in between."""
    study = optuna.create_study(directions=[*directions], sampler=sampler(name, seed, space, directions))
    for i in range(trials):
        if i == restart_at:
            study.sampler = sampler(name, seed, space, directions)
        trial = study.ask(space)
        study.tell(trial, values_of(study.trials[trial.number], len(directions)))
    return study.trials


@pytest.mark.parametrize("name", SEARCH_SAMPLERS)
def test_proposals_lie_in_the_space_and_come_again_after_a_restart(name: str) -> None:
    needed(name)
    space = space_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", optuna.exceptions.ExperimentalWarning)
        first = searched(name, space, 12)
    for trial in first:
        assert {*trial.params} == {*space}
        assert all(space[key]._contains(space[key].to_internal_repr(value)) for key, value in trial.params.items())
    assert [trial.params for trial in searched(name, space, 12, restart_at=11)] == [trial.params for trial in first]
    assert [trial.params for trial in searched(name, space, 12, seed=1)] != [trial.params for trial in first]
    assert len({str(trial.params) for trial in first}) > 8


@pytest.mark.parametrize("name", sorted({*SEARCH_SAMPLERS} - {"cmaes"}))
def test_two_objectives(name: str) -> None:
    needed(name)
    trials = searched(name, space_of(name), 11, directions=BOTH)
    assert all(len(trial.values) == 2 for trial in trials)


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_every_point_of_a_small_space_is_tried_once(name: str) -> None:
    assert len({str(trial.params) for trial in searched(name, DISCRETE, 24)}) == 4 * 3 * 2


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "nsgaii", "grid", "brute_force"])
def test_an_enqueued_point_is_tried_first_and_what_it_leaves_open_is_sampled(name: str) -> None:
    space = space_of(name)
    study = optuna.create_study(sampler=sampler(name, 0, space))
    study.enqueue_trial({"n": 3})
    trial = study.ask(space)
    assert trial.params["n"] == 3
    assert {*trial.params} == {*space}


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "nsgaii"])
def test_processes_that_share_a_seed_do_not_propose_the_same(name: str) -> None:
    storage = optuna.storages.InMemoryStorage()
    studies = [
        optuna.create_study(study_name="one", storage=storage, load_if_exists=True, sampler=sampler(name, 0, LR))
        for _ in range(4)
    ]
    proposed = [study.ask(LR).params["lr"] for study in studies for _ in range(3)]
    assert len({*proposed}) == 12


def test_cells_begin_with_the_same_points() -> None:
    """So that a difference between two cells is not the luck of their first draws."""
    cells = [optuna.create_study(study_name=name, sampler=sampler("tpe", 0, LR)) for name in ("full", "head")]
    assert len({tuple(study.ask(LR).params["lr"] for _ in range(5)) for study in cells}) == 1


def test_a_sampler_that_learns_comes_closer_than_chance() -> None:
    def distance(name: str) -> float:
        last = [searched(name, LR, 25, seed)[15:] for seed in range(3)]
        return sum(-trial.value for trials in last for trial in trials) / 30

    assert distance("tpe") < 0.7 * distance("random")


def run(name: str, curves: Sequence[Sequence[float]], direction: str) -> optuna.Study:
    """One trial after another, each reporting its curve until it is ended."""
    study = optuna.create_study(
        study_name="pruned", direction=direction, sampler=sampler("random", 0, LR), pruner=pruner(name, epochs=len(curves[0]))
    )
    for curve in curves:
        trial = study.ask(LR)
        for epoch, value in enumerate(curve):
            trial.report(value, epoch)
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
    return study


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("name", SEARCH_PRUNERS)
def test_the_hopeless_is_pruned_and_the_best_is_kept(name: str, direction: str) -> None:
    needed(name)
    sign = 1 if direction == "maximize" else -1
    levels = [0.5, 0.55, 0.6, 0.52, 0.58, 0.62, 0.9, *(0.1 - i / 1000 for i in range(12))]
    curves = [
        [sign * level * (1 - epoch / 40 if level < 0.2 else 1 - 0.5 / (epoch + 1)) for epoch in range(20)] for level in levels
    ]
    study = run(name, curves, direction)
    states = [trial.state for trial in study.trials]
    assert study.best_trial.number == 6
    assert states[6] == TrialState.COMPLETE
    assert (TrialState.PRUNED in states[7:]) == (name != "none")
    if name in ("median", "asha", "wilcoxon", "patient"):
        assert {*states[7:]} == {TrialState.PRUNED}


@pytest.mark.parametrize("name", ["median", "asha", "patient"])
def test_a_run_that_begins_slowly_is_not_judged_by_its_first_epochs(name: str) -> None:
    curves = [[0.5] * 20] * 6 + [[0.0] * 6 + [0.9] * 14]
    assert run(name, curves, "maximize").trials[6].state == TrialState.COMPLETE


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"search\.sampler=tep is not one of .*, did you mean tpe\?"):
        sampler("tep", 0, LR)
    with pytest.raises(ConfigError, match=r"search\.pruner=medain is not one of .*, did you mean median\?"):
        pruner("medain")


def test_what_a_sampler_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXHAUSTIVE:
        with pytest.raises(ConfigError, match=rf"search\.sampler={name} tries every value, but lr, momentum is continuous"):
            sampler(name, 0, CONTINUOUS)
    with pytest.raises(ConfigError, match=r"search\.pruner=median cannot judge 2 objectives at once: add search\.pruner=none"):
        pruner("median", directions=BOTH)
    pruner("none", directions=BOTH)
    monkeypatch.setattr(samplers, "find_spec", lambda module: None if module == "cmaes" else find_spec(module))
    with pytest.raises(ConfigError, match=r"search\.sampler=cmaes needs what is not installed: pip install cmaes"):
        sampler("cmaes", 0, CONTINUOUS)
    monkeypatch.setattr(samplers, "find_spec", lambda module: True)
    with pytest.raises(ConfigError, match="needs two numbers to search, but there is 1"):
        sampler("cmaes", 0, LR)
    with pytest.raises(ConfigError, match="follows one objective, not 2"):
        sampler("cmaes", 0, CONTINUOUS, BOTH)


def test_a_cell_without_a_space_needs_no_sampler() -> None:
    assert isinstance(sampler("cmaes" if find_spec("cmaes") else "grid", 0, {}), optuna.samplers.RandomSampler)


def test_durations() -> None:
    written = {"8h": 28800, "30m": 1800, "90s": 90, "1h30m": 5400, "1h 30m 5s": 5405, "0.5h": 1800}
    assert {duration: seconds(duration) for duration in written} == written


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["search.timeout=90"], "search.timeout=90 is no time that a search could take: write it as 8h, 30m, 90s or 1h30m"),
        (["search.timeout=0h"], "search.timeout=0h is no time"),
        (["search.timeout=8hours"], "search.timeout=8hours is no time"),
        (["search.sampler=tep"], "did you mean tpe?"),
        (["search.pruner=medain"], "did you mean median?"),
        (["search.n_trials=0"], "search.n_trials=0 is too small"),
        (["search.max_failure_rate=2"], "search.max_failure_rate=2.0 is out of range"),
        (["search.objectives=[val/acc,train/seconds]"], "add search.pruner=none"),
        (["search.objectives=[val/acc,train/seconds]", "search.pruner=none", "search.sampler=cmaes"], "follows one objective"),
    ],
)
def test_a_search_is_checked_at_the_door(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    assert words in str(refused.value)
