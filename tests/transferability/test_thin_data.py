"""What every score does alike: grow with information, stay finite on thin data, refuse in one sentence what it cannot judge."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from fourfold import transferability as t

Score = Callable[[np.ndarray, np.ndarray], float]


def softmax(features: np.ndarray) -> np.ndarray:
    powers = np.exp(features - features.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


SCORES: dict[str, Score] = {
    "gbc": t.gbc,
    "h_score": t.h_score,
    "h_score_shrunk": t.h_score_shrunk,
    "knn_accuracy": t.knn_accuracy,
    "leep": lambda features, labels: t.leep(softmax(features), labels),
    "linear_probe": lambda features, labels: t.linear_probe(features, labels).accuracy,
    "logme": t.logme,
    "n_leep": t.n_leep,
    "nce": lambda features, labels: t.nce(features.argmax(axis=1), labels),
    "transrate": t.transrate,
}
DISTANCES: dict[str, Score] = {
    "emd": lambda a, b: t.prototype_emd(t.prototypes(a, np.arange(len(a)) % 3), t.prototypes(b, np.arange(len(b)) % 2)),
    "frechet": lambda a, b: t.frechet_distance(t.moments(a), t.moments(b)),
    "mmd": t.mmd,
    "proxy_a": t.proxy_a_distance,
}
G = np.random.default_rng(0)
NOISE = G.normal(size=(24, 4))
FOUR = np.arange(24) % 4
THIN = {
    "fewer images than features": (G.normal(size=(24, 60)), FOUR),
    "constant features": (np.full((24, 4), 0.1), FOUR),
    "features that are zero": (np.zeros((24, 4)), FOUR),
    "one constant feature": (np.concatenate([NOISE, np.full((24, 1), 1e6)], axis=1), FOUR),
    "duplicate rows": (np.repeat(NOISE[:2], 12, axis=0), FOUR),
    "a class that is missing": (NOISE, np.array([0, 2, 5])[np.arange(24) % 3]),
    "a rare class": (NOISE, np.array([0] * 20 + [1] * 4)),
    "a single feature": (NOISE[:, :1], FOUR),
    "a perfect feature": (np.eye(4)[FOUR], FOUR),
    "large values": (NOISE * 1e8, FOUR),
    "small values": (NOISE * 1e-8, FOUR),
    "half precision": (NOISE.astype(np.float16), FOUR.astype(np.uint8)),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("case", THIN)
def test_thin_data_give_a_finite_score_without_a_warning(score: str, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(SCORES[score](*THIN[case]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("case", [case for case in THIN if case != "a single feature"])
def test_thin_data_give_a_finite_distance_without_a_warning(distance: str, case: str) -> None:
    features, _ = THIN[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(DISTANCES[distance](features[:12], features[12:]))
        assert np.isfinite(DISTANCES[distance](features[:12], features[12:] + 1))


@pytest.mark.parametrize("score", sorted(SCORES.keys() - {"linear_probe"}))
def test_one_image_per_class_gives_a_finite_score(score: str) -> None:
    assert np.isfinite(SCORES[score](G.normal(size=(6, 4)), np.arange(6)))


def test_a_probe_says_why_it_cannot_judge_one_image_per_class() -> None:
    with pytest.raises(ValueError, match="a class has 1 of the labels: a probe over 4 folds needs 4"):
        t.linear_probe(NOISE[:6], np.arange(6))


@pytest.mark.parametrize("score", SCORES)
def test_a_single_class_is_refused(score: str) -> None:
    with pytest.raises(ValueError, match="labels holds the single class 3"):
        SCORES[score](NOISE, np.full(24, 3))


@pytest.mark.parametrize("score", SCORES)
def test_labels_that_are_no_classes_of_these_images_are_refused(score: str) -> None:
    with pytest.raises(ValueError, match="labels"):
        SCORES[score](NOISE, FOUR[:-1])
    with pytest.raises(ValueError, match="float64: give the class numbers as integers"):
        SCORES[score](NOISE, FOUR / 2)


@pytest.mark.parametrize("score", sorted(SCORES.keys() - {"leep", "nce"}))
def test_features_that_are_not_finite_or_no_matrix_are_refused(score: str) -> None:
    with pytest.raises(ValueError, match="features holds 2 values that are not finite"):
        SCORES[score](np.where(np.arange(96).reshape(24, 4) < 2, np.inf, NOISE), FOUR)
    with pytest.raises(ValueError, match=r"features has shape \(24,\)"):
        SCORES[score](NOISE[:, 0], FOUR)


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(ValueError, match="apply the softmax"):
        t.leep(NOISE, FOUR)


@pytest.mark.parametrize("score", SCORES)
def test_more_information_about_the_labels_raises_every_score(score: str) -> None:
    """Features between noise and the labels themselves, on the way from one to the other."""
    labels = np.arange(400) % 4
    noise = np.random.default_rng(1).normal(size=(400, 4))
    values = [SCORES[score]((1 - share) * noise + share * 3 * np.eye(4)[labels], labels) for share in (0, 0.3, 0.6, 0.9)]
    assert values == sorted(values)
    assert values[0] < values[1]
