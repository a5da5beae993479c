"""Lift: what share of the error of random features the pretrained ones remove. The similarity to look at first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.transferability.evidence import logme
from fourfold.transferability.inputs import Floats, Ints, features_of, labels_of
from fourfold.transferability.probe import linear_probe

EASY = 0.97  # accuracy of random features above which nothing is left to lift
FEW = 5  # images of the rarest class, below which the probe says nothing
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Lift:
    """The share of random features' error that pretrained features remove.

    Attributes:
        value: 1: all of it; 0: none; below 0: the pretrained features are worse. None where it is undefined.
        low, high: of a 95% interval; None as `value`.
        pretrained, random: accuracies of the linear probe, 0 to 1, the second a mean over initialisations; None where the probe
            could not be fitted.
        undefined: one sentence that says why there is no value; None where there is one.
        draws: [resamples], the bootstrap draws whose quantiles `low` and `high` are; empty where it is undefined.
    """

    value: float | None
    low: float | None
    high: float | None
    pretrained: float | None
    random: float | None
    undefined: str | None = None
    draws: Floats = field(default_factory=lambda: np.empty(0), compare=False, repr=False)


def lift(pretrained: ArrayLike, random: Sequence[ArrayLike], labels: ArrayLike, seed: int = 0) -> Lift:
    """(A_pre - A_rand) / (1 - A_rand), with the accuracy A of `linear_probe` on TRAINING images.

    Ours; it is a relative error reduction, (E_rand - E_pre) / E_rand. Subtracting what the same architecture reads from the
    images with random weights takes out how easy the task is, which raw scores mostly measure (docs/transferability.md).

    The interval is a percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552) over the images within each class and over
    the initialisations, drawing one fewer than there are: drawing all m makes the variance too small by (m - 1) / m, a half
    for two initialisations (Rao and Wu 1988, doi:10.1080/01621459.1988.10478591). An image brings its answers under all
    networks along, so that what makes an image hard for all of them cancels out. Images rather than folds: there are only 4
    folds, and they share training images. The interval covers which images were held out and which random weights were drawn;
    not that other images would have trained other probes.

    Args:
        pretrained: [N, D] features of the pretrained network.
        random: two or more of [N, D], features of the same architecture with random weights, its batch-norm statistics set
            on the target's images.
        labels: [N] integers.
        seed: of the folds and of the bootstrap.

    Returns:
        A fraction in (-inf, 1]. Undefined, with the reason, where A_rand > .97 or the rarest class has fewer than 5 images.
        Costs 1 + len(random) linear probes.

    Raises:
        ValueError: fewer than two random initialisations, different numbers of images; see also `inputs`.
    """
    if len(random) < 2:
        raise ValueError(f"random holds {len(random)} initialisations: give features of 2 or more, one alone is chance")
    named = [features_of(pretrained, "pretrained"), *(features_of(each, f"random[{i}]") for i, each in enumerate(random))]
    renumbered, _ = labels_of(labels, len(named[0]))
    if len({len(each) for each in named}) > 1:
        raise ValueError(
            f"pretrained and random hold {[len(each) for each in named]} rows: give features of the same images, in one order"
        )
    fewest = int(np.bincount(renumbered).min())
    if fewest < FEW:
        reason = f"the rarest class has {fewest} training images, and a probe says nothing below {FEW}: give more images"
        return Lift(None, None, None, None, None, reason)
    correct = np.stack([linear_probe(each, renumbered, seed).correct for each in named])  # [1 + R, N]
    a_pretrained, a_random = float(correct[0].mean()), float(correct[1:].mean())
    if a_random > EASY:
        reason = (
            f"random features reach {a_random:.3f} already, and above {EASY} too little error is left to compare: "
            "the task needs no transfer"
        )
        return Lift(None, None, None, a_pretrained, a_random, reason)
    draws = _draws(correct, renumbered, np.random.default_rng(seed))
    return Lift((a_pretrained - a_random) / (1 - a_random), *_interval(draws), a_pretrained, a_random, draws=draws)


def logme_gain(pretrained: ArrayLike, random: Sequence[ArrayLike], labels: ArrayLike) -> float:
    """LogME of the pretrained features minus its mean over random initialisations of the same architecture.

    Ours. Less steady over training-set sizes than the lift, and free of folds and seeds.

    Args:
        pretrained: [N, D].
        random: one or more of [N, D].
        labels: [N] integers.

    Returns:
        Nats per image and class; 0 where pretraining tells nothing about the labels.
    """
    if not len(random):
        raise ValueError("random holds no initialisation: give features of 1 or more, there is nothing to gain over otherwise")
    return logme(pretrained, labels) - float(np.mean([logme(each, labels) for each in random]))


def _draws(correct: NDArray[np.bool_], labels: Ints, generator: np.random.Generator) -> Floats:
    networks, n = correct.shape
    # Drawing images within a class is drawing how often each counts, so one product gives every resample's accuracies.
    counts = np.zeros((RESAMPLES, n))
    for k in range(labels.max() + 1):
        members = np.flatnonzero(labels == k)
        m = len(members)
        counts[:, members] = generator.multinomial(m - 1, np.full(m, 1 / m), size=RESAMPLES) * (m / (m - 1))
    accuracies = counts @ correct.T / n  # [resamples, 1 + R]
    drawn = generator.integers(1, networks, size=(RESAMPLES, networks - 2))
    a_random = np.take_along_axis(accuracies, drawn, axis=1).mean(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        lifts = np.where(a_random < 1, (accuracies[:, 0] - a_random) / (1 - a_random), np.nan)
    return np.minimum(lifts[~np.isnan(lifts)], 1.0)  # accuracies of 1 are so but for rounding


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
