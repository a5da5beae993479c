"""Optuna's samplers and pruners by name, set up for runs that last minutes: tens of trials per cell, not thousands."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from fourfold.config import SEARCH_PRUNERS, SEARCH_SAMPLERS, ConfigError, nearest
from fourfold.study.space import grid

# Optuna's 50 would make the whole budget of a usual cell its first, random generation.
POPULATION = 10

NEEDS = {
    "cmaes": {"cmaes": "cmaes"},
    "gp": {"torch": "torch", "scipy": "scipy"},
    "qmc": {"scipy": "scipy"},
    "wilcoxon": {"scipy": "scipy"},
}  # name -> module -> what pip installs it by


def sampler(
    name: str, seed: int, space: Mapping[str, BaseDistribution], directions: Sequence[str] = ("maximize",)
) -> BaseSampler:
    """The sampler called `name`.

    What it proposes for the k-th point depends on `seed`, k, and the trials that have ended: not on the process that asks. So a
    search that was killed goes on as if it had not been, and no two processes propose the same. Cells of one search begin
    with the same random points, which makes them comparable.

    Args:
        name: One of `SEARCH_SAMPLERS`.
        seed: Of the search.
        space: What the cell searches.
        directions: `maximize` or `minimize` for each objective.

    Raises:
        ConfigError: the name is unknown, a package is missing, or the space or the objectives are not for this sampler.
    """
    _known("search.sampler", name, SEARCH_SAMPLERS)
    if not space:
        return samplers.RandomSampler(seed=seed)  # nothing to choose
    values = grid(space)
    if name in ("grid", "brute_force") and values is None:
        continuous = ", ".join(key for key in space if grid({key: space[key]}) is None)
        raise ConfigError(
            f"search.sampler={name} tries every value, but {continuous} is continuous: "
            "write it as tag(search,choice(...)) or tag(search,range(...)), or choose tpe"
        )
    if name == "cmaes":
        _check_cmaes(space, directions)
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda draw: samplers.TPESampler(seed=draw, multivariate=True, group=True, constant_liar=True),
        "gp": lambda draw: samplers.GPSampler(seed=draw),
        "cmaes": lambda draw: samplers.CmaEsSampler(seed=draw, warn_independent_sampling=False),
        # one sequence for all trials: what differs between them is their place in it
        "qmc": lambda draw: samplers.QMCSampler(
            scramble=True,
            seed=seed,
            independent_sampler=samplers.RandomSampler(seed=draw),
            warn_independent_sampling=False,
        ),
        "random": lambda draw: samplers.RandomSampler(seed=draw),
        "nsgaii": lambda draw: samplers.NSGAIISampler(seed=draw, population_size=POPULATION),
        "grid": lambda draw: samplers.GridSampler(values or {}, seed=seed),  # one order of the points for all trials
        "brute_force": lambda draw: samplers.BruteForceSampler(seed=draw),
    }
    return _Repeatable(makers[name], seed)


def pruner(name: str, *, epochs: int | None = None, directions: Sequence[str] = ("maximize",)) -> BasePruner:
    """The pruner called `name`, for trials that report once per validated epoch.

    Args:
        name: One of `SEARCH_PRUNERS`.
        epochs: How long a trial is if nothing ends it; None where nobody knows.
        directions: `maximize` or `minimize` for each objective. The pruners themselves follow the study's.

    Raises:
        ConfigError: the name is unknown, a package is missing, or the objectives are several.
    """
    _known("search.pruner", name, SEARCH_PRUNERS)
    if len(directions) > 1 and name != "none":
        raise ConfigError(f"search.pruner={name} cannot judge {len(directions)} objectives at once: add search.pruner=none")
    # In the first third of the epochs the learning rate is warmed up or highest, and curves still cross.
    early = (epochs or 0) // 3
    median = pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=early)
    makers: dict[str, Callable[[], BasePruner]] = {
        "median": lambda: median,
        "asha": lambda: pruners.SuccessiveHalvingPruner(min_resource=max(1, early), reduction_factor=2),
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=epochs or "auto", reduction_factor=3),
        "wilcoxon": lambda: pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2),
        "patient": lambda: pruners.PatientPruner(median, patience=max(1, (epochs or 10) // 5)),
        "none": pruners.NopPruner,
    }
    return _made(makers[name])


class _Repeatable(BaseSampler):
    """A new sampler for every trial, seeded with its place. What Optuna's samplers must keep, they keep in the study.

    Args:
        make: Makes a sampler from a seed.
        seed: Of the search.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._current = self._of(0)

    def _of(self, place: int) -> BaseSampler:
        draw = int(np.random.SeedSequence([self._seed, place]).generate_state(1)[0])
        return _made(lambda: self._make(draw))

    def reseed_rng(self) -> None:
        """Nothing: every trial has its own seed."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._current = self._of(_place(study, trial.number))
        self._current.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if isinstance(self._current, samplers.GridSampler) and "grid_id" not in trial.system_attrs:
            # an enqueued point that leaves a key open: GridSampler would raise
            return samplers.RandomSampler(seed=self._seed).sample_independent(study, trial, param_name, param_distribution)
        return self._current.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: without constraints, the samplers only stop a study here, which is the budget's part."""


def _place(study: Study, number: int) -> int:
    """How many points came before that of a trial. Trial numbers would count a point that was cut short and put back (with the
    same `key`) twice, so that a kill would change what is proposed after it."""
    first: dict[str | int, int] = {}
    mine: str | int = number
    for each in study.get_trials(deepcopy=False):  # in the order of their numbers
        key = each.user_attrs.get("key", f"n{each.number}")
        first.setdefault(key, each.number)
        mine = key if each.number == number else mine
    return sum(begun < first.get(mine, number) for begun in first.values())


def _made(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return make()


def _known(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ConfigError(f"{key}={name} is not one of {', '.join(allowed)}{nearest(name, allowed)}")
    missing = [package for module, package in NEEDS.get(name, {}).items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{key}={name} needs what is not installed: pip install {' '.join(missing)}")


def _check_cmaes(space: Mapping[str, BaseDistribution], directions: Sequence[str]) -> None:
    if len(directions) > 1:
        raise ConfigError(f"search.sampler=cmaes follows one objective, not {len(directions)}: choose nsgaii or tpe")
    numbers = [key for key, distribution in space.items() if not isinstance(distribution, CategoricalDistribution)]
    if len(numbers) < 2:
        raise ConfigError(f"search.sampler=cmaes needs two numbers to search, but there is {len(numbers)}: choose tpe or gp")
