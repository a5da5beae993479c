"""The lift: what it is at its ends, when it is undefined, and what its interval covers."""

import numpy as np
import pytest

from fourfold.transferability import lift, linear_probe, logme, logme_gain
from fourfold.transferability.benefit import _draws, _interval

G = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 30)
SIGNAL = np.eye(4)[LABELS]


def noisy(amount: float, seed: int, width: int = 16) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return SIGNAL @ np.eye(4, width) + amount * generator.normal(size=(120, width))


RANDOM = [noisy(1.0, seed) for seed in (1, 2)]


def test_lift_is_the_share_of_the_error_removed() -> None:
    result = lift(noisy(0.4, 0), RANDOM, LABELS, seed=3)
    pretrained = linear_probe(noisy(0.4, 0), LABELS, seed=3).accuracy
    random = np.mean([linear_probe(each, LABELS, seed=3).accuracy for each in RANDOM])
    assert result.value == pytest.approx((pretrained - random) / (1 - random))
    assert (result.pretrained, result.random) == (pytest.approx(pretrained), pytest.approx(random))
    assert result.undefined is None


def test_lift_is_one_for_perfect_features_and_negative_for_worse_ones() -> None:
    perfect = lift(SIGNAL, RANDOM, LABELS)
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
    worse = lift(noisy(10.0, 0), RANDOM, LABELS)
    assert worse.high is not None
    assert worse.high < 0


def test_lift_of_equal_features_is_zero() -> None:
    same = lift(RANDOM[0], [RANDOM[0]] * 2, LABELS)
    assert (same.value, same.low, same.high) == (0, 0, 0)  # each image answers alike under both: pairing leaves no spread
    alike = lift(noisy(1.0, 0), RANDOM, LABELS)
    assert alike.low is not None
    assert alike.high is not None
    assert alike.low < 0 < alike.high


def test_the_interval_holds_the_value_and_narrows_with_images() -> None:
    few = lift(noisy(0.6, 0)[::4], [each[::4] for each in RANDOM], LABELS[::4])
    many = lift(noisy(0.6, 0), RANDOM, LABELS)
    for result in (few, many):
        assert result.low < result.value < result.high
    assert many.high - many.low < few.high - few.low


def test_the_same_seed_gives_the_same_lift() -> None:
    assert lift(noisy(0.6, 0), RANDOM, LABELS, seed=1) == lift(noisy(0.6, 0), RANDOM, LABELS, seed=1)


def test_lift_is_undefined_where_the_task_is_too_easy_or_the_images_too_few() -> None:
    easy = lift(SIGNAL, [noisy(0.1, 1), noisy(0.1, 2)], LABELS)
    assert (easy.value, easy.low, easy.high, easy.random) == (None, None, None, 1)
    assert "0.97" in str(easy.undefined)
    few = np.flatnonzero((LABELS > 0) | (np.arange(120) < 4))
    rare = lift(SIGNAL[few], [each[few] for each in RANDOM], LABELS[few])
    assert rare.value is None
    assert "the rarest class has 4 training images" in str(rare.undefined)


def test_lift_needs_two_initialisations_of_the_same_images() -> None:
    with pytest.raises(ValueError, match="random holds 1 initialisations"):
        lift(SIGNAL, RANDOM[:1], LABELS)
    with pytest.raises(ValueError, match=r"\[120, 120, 60\] rows"):
        lift(SIGNAL, [RANDOM[0], RANDOM[1][:60]], LABELS)


def test_logme_gain_is_the_difference_from_the_mean() -> None:
    expected = logme(noisy(0.4, 0), LABELS) - np.mean([logme(each, LABELS) for each in RANDOM])
    assert logme_gain(noisy(0.4, 0), RANDOM, LABELS) == pytest.approx(expected)
    assert logme_gain(RANDOM[0], [RANDOM[0]], LABELS) == 0


def test_the_interval_is_as_wide_as_the_spread_of_single_answers_says() -> None:
    """Random features that never answer right make the lift an accuracy: the interval is that of a share of 120 answers."""
    generator = np.random.default_rng(0)
    answers = np.zeros((3, 120), dtype=bool)
    answers[0] = generator.random(120) < 0.7
    low, high = _interval(_draws(answers, np.zeros(120, dtype=int), generator))
    share = answers[0].mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 119), rel=0.1)  # 2000 resamples


def test_the_interval_covers_which_weights_were_drawn() -> None:
    """Two initialisations with errors 1 and 1/2: a resample has one of them, so the ends are the lifts over either."""
    answers = np.zeros((3, 120), dtype=bool)
    answers[0], answers[2, ::2] = True, True
    answers[0, :12] = False
    low, high = _interval(_draws(answers, np.arange(120) % 2, np.random.default_rng(0)))
    assert low < 0.8
    assert high > 0.9


@pytest.mark.parametrize("features", [np.full((120, 3), 0.1), np.zeros((120, 3)), np.tile(RANDOM[0], (1, 20))])
def test_lift_of_thin_features_is_finite(features: np.ndarray) -> None:
    result = lift(features, RANDOM, LABELS)
    assert np.isfinite([result.value, result.low, result.high]).all()
