"""Set the thresholds of `fourfold place` on embedded targets at a dialled distance, and say what they are worth.

Runs `experiment=calibrate_quadrants` (what is finished is only read) on twelve targets between rendered digits and colour
textures, on the digits themselves and on handwritten ones; measures where each stands, for both sizes and seeds; and looks for
the two lifts at which following `fourfold.advice` loses least against the best strategy. With --write they go into
conf/place/default.yaml. docs/place.md tells what came out.

    python scripts/calibrate_quadrants.py [--outputs outputs] [--write]    (504 runs, 18 CPU minutes)
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.stats import spearmanr

from fourfold import cli, groups
from fourfold.advice import EVIDENCE
from fourfold.compose import compose
from fourfold.files import write_json
from fourfold.place import placed
from fourfold.study.metric import POINT
from fourfold.study.results import Result, collect

EXPERIMENT = "calibrate_quadrants"
DISTANCES = (0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
TOWARDS = ("textures", "clutter")
DIALLED = {f"{towards} {d}": (towards, d) for towards in TOWARDS for d in DISTANCES}
SIZES = {"small": 5, "large": 100}  # images per class
SEEDS = (0, 1)
STRATEGIES = ("classifier_only", "last_blocks", "full")
MEASURES = ("lift", "logme_gain", "logme", "probe", "shift")
HALF = 10**0.25  # half a step between the rates 1e-3, 3e-3 and 1e-2
GRID = np.round(np.arange(0.0, 1.0 + 1e-9, 0.01), 2)


@dataclass(frozen=True)
class Case:
    """A target at one size: what was measured before training, and what training gave."""

    target: str
    size: str
    measured: Mapping[str, Sequence[float]]  # measure -> one value for each seed
    accuracy: Mapping[str, float]  # strategy -> test accuracy at the rate chosen on validation, mean over seeds
    rate: Mapping[str, float]  # strategy -> that rate

    def regret(self, strategy: str) -> float:
        """How far (0 to 1) a strategy is behind the best one; less than a point is a tie."""
        behind = max(self.accuracy.values()) - self.accuracy[strategy]
        return behind if behind >= POINT else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    paths = f"paths.outputs={asked.outputs}"
    for words in _targets():
        if cli.command(["-m", f"experiment={EXPERIMENT}", *words, "search.preflight=off", "search.map=false", paths]):
            raise SystemExit(1)
    runs = [run for run in collect(Path(asked.outputs) / EXPERIMENT) if run.dataset in ("dialled", "digits", "glyph_digits")]
    cases = [_case(target, size, runs, paths) for target in (*DIALLED, "glyph_digits", "digits") for size in SIZES]
    write_json(Path(asked.outputs) / EXPERIMENT / "calibration.json", [vars(case) for case in cases])
    near, far = report(cases)
    rates = {level: _rates(cases, level, near, far) for level in ("similar", "middle", "different")}
    print(f"\nrates of the suggested strategy, in multiples of optimizer.lr: {json.dumps(rates)}")
    if asked.write:
        _write(near, far, rates)


def _targets() -> list[list[str]]:
    dials = [f"dataset.kwargs.towards={','.join(TOWARDS)}", f"dataset.kwargs.distance={','.join(map(str, DISTANCES))}"]
    return [["dataset=dialled", *dials], ["dataset=glyph_digits,digits"]]


def _case(target: str, size: str, runs: Sequence[Result], paths: str) -> Case:
    towards, distance = DIALLED.get(target, (None, None))
    name = "dialled" if towards else target
    here = [
        run
        for run in runs
        if run.dataset == name
        and run.config["dataset"]["shots"] == SIZES[size]
        and (run.config["dataset"]["kwargs"].get("towards"), run.config["dataset"]["kwargs"].get("distance"))
        == (towards, distance)
    ]
    accuracy, rate = {}, {}
    for strategy in STRATEGIES:
        of = [run for run in here if run.strategy == strategy]
        rates = sorted({run.optimizer["lr"] for run in of})
        at = {lr: [run for run in of if run.optimizer["lr"] == lr] for lr in rates}
        rate[strategy] = max(rates, key=lambda lr: mean(run.val["acc"] for run in at[lr]))
        accuracy[strategy] = mean(run.test["acc"] for run in at[rate[strategy]])
    words = [f"dataset={name}", f"dataset.shots={SIZES[size]}", "logger=none", "trainer.device=cpu", "trainer.threads=1", paths]
    words += [f"dataset.kwargs.towards={towards}", f"dataset.kwargs.distance={distance}"] if towards else []
    found = [placed(compose([*words, f"seed={seed}"])) for seed in SEEDS]
    measured = {
        "lift": [each.lift.value for each in found],
        "logme_gain": [each.logme_gain for each in found],
        "logme": [each.logme for each in found],
        "probe": [each.lift.pretrained for each in found],
        "shift": [-each.shift for each in found],
    }
    if any(value is None for value in measured["lift"]):
        raise SystemExit(f"{target} {size}: {found[0].lift.undefined}")
    return Case(target, size, measured, accuracy, rate)


def report(cases: Sequence[Case]) -> tuple[float, float]:
    """Print what was found; returns the two thresholds."""
    print(f"\n{'target':14}{'size':7}{'lift':>6}  " + "".join(f"{name:>17}" for name in STRATEGIES))
    for case in sorted(cases, key=lambda each: (each.size, -mean(each.measured["lift"]))):
        cells = (f"{case.accuracy[name]:>10.1%} @{case.rate[name]:<5g}" for name in STRATEGIES)
        print(f"{case.target:14}{case.size:7}{mean(case.measured['lift']):6.2f}  " + "".join(cells))
    print("\nSpearman correlation of the dialled distance with")
    for name in MEASURES:
        told = (f"{towards} {size} {correlation(cases, name, towards, size):+.2f}" for towards in TOWARDS for size in SIZES)
        print(f"  {name:11}{', '.join(told)}")
    (near, far), plateau = thresholds(cases)
    print(f"\nthresholds: similar from {near:.2f}, different below {far:.2f}")
    (low, high), (lower, higher) = plateau
    print(f"  as good: similar from {low:.2f} to {high:.2f}, different from {lower:.2f} to {higher:.2f}")
    rules = {
        "this rule": [regret for case in cases for regret in regrets(case, near, far)],
        "this rule, thresholds set without the target": left_out(cases),
        **{f"always {name}": [case.regret(name) for case in cases for _ in SEEDS] for name in STRATEGIES},
    }
    print("\npoints behind the best of the three strategies, mean (most), over targets, sizes and seeds")
    for name, values in rules.items():
        print(f"  {name:46}{100 * mean(values):5.1f} ({100 * max(values):.1f})")
    return near, far


def correlation(cases: Sequence[Case], measure: str, towards: str, size: str) -> float:
    """Spearman's, over the distances of one dial, of the distance with minus the measure: +1 ranks all of them."""
    dial = [case for case in cases if case.size == size and case.target in DIALLED and DIALLED[case.target][0] == towards]
    return float(spearmanr([DIALLED[case.target][1] for case in dial], [-mean(case.measured[measure]) for case in dial])[0])


def regrets(case: Case, near: float, far: float) -> list[float]:
    """What following the advice costs in each seed."""
    levels = ("similar" if lift >= near else "middle" if lift >= far else "different" for lift in case.measured["lift"])
    return [case.regret(EVIDENCE[level, case.size].suggested) for level in levels]


def thresholds(cases: Sequence[Case]) -> tuple[tuple[float, float], tuple[tuple[float, float], tuple[float, float]]]:
    """The pair that costs least on average, in the middle of those that cost the same; and how far those reach.

    The second stays where it is shipped if that costs no more: where the advice is the same on both sides of it, it is a name.

    Returns:
        (similar from, different below), ((least, most) of the first, (least, most) of the second).
    """
    cost = {
        (near, far): mean(r for case in cases for r in regrets(case, near, far)) for far in GRID for near in GRID if far <= near
    }
    least = min(cost.values())
    good = np.array([pair for pair, value in cost.items() if value <= least + 1e-9])
    shipped = compose([]).place.different
    kept = good[np.isclose(good[:, 1], shipped)] if np.isclose(good[:, 1], shipped).any() else good
    middle = (kept.min(axis=0) + kept.max(axis=0)) / 2
    near, far = kept[np.abs(kept - middle).sum(axis=1).argmin()]
    (near_low, far_low), (near_high, far_high) = good.min(axis=0), good.max(axis=0)
    return (float(near), float(far)), ((near_low, near_high), (far_low, far_high))


def left_out(cases: Sequence[Case]) -> list[float]:
    """What the advice costs on each target when the thresholds are set on the others."""
    found = []
    for target in dict.fromkeys(case.target for case in cases):
        (near, far), _ = thresholds([case for case in cases if case.target != target])
        found += [regret for case in cases if case.target == target for regret in regrets(case, near, far)]
    return found


def _rates(cases: Sequence[Case], level: str, near: float, far: float) -> list[float]:
    """Least and most of the rates that validation chose for the suggested strategy, and half a step of the grid beyond, over
    the usual rate."""
    usual = compose([f"experiment={EXPERIMENT}"]).optimizer.name, compose(["optimizer=adamw"]).optimizer.lr
    assert usual[0] == "adamw"
    chosen = [
        case.rate[EVIDENCE[level, case.size].suggested] / usual[1]
        for case in cases
        if ("similar" if (lift := mean(case.measured["lift"])) >= near else "middle" if lift >= far else "different") == level
    ]
    return [round(min(chosen) / HALF, 2), round(max(chosen) * HALF, 2)]


def _write(near: float, far: float, rates: Mapping[str, list[float]]) -> None:
    file = groups.conf_dir() / "place" / "default.yaml"
    text = file.read_text(encoding="utf-8")
    for key, value in {"similar": near, "different": far}.items():
        text = re.sub(rf"^{key}: [\d.]+", f"{key}: {value}", text, flags=re.M)
    for key, value in rates.items():
        text = re.sub(rf"^  {key}: \[.*?\]", f"  {key}: {value}", text, flags=re.M)
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
