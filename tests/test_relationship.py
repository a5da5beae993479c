"""Which source classes a target class looks like, by both approaches of Co-Tuning."""

import numpy as np
import pytest
from scipy.special import softmax

from fourfold import relationship


def images(per_class: int, sure: float, seed: int = 0) -> tuple[relationship.Floats, relationship.Ints]:
    """Probabilities of six source classes: of target class t, the source is fairly sure of 2 t or 2 t + 1, equally often."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    seen = 2 * labels + rng.integers(0, 2, len(labels))
    logits = rng.normal(size=(len(labels), 6)) + sure * np.eye(6)[seen]
    return softmax(logits, axis=1), labels


def test_direct_is_the_mean_of_each_class_written_as_a_loop() -> None:
    probabilities, labels = images(7, 2.0)
    found = relationship.direct(probabilities, labels, 4)
    for label in range(3):
        mean = sum(p for p, each in zip(probabilities, labels, strict=True) if each == label) / 7
        np.testing.assert_allclose(found[label], mean)
    np.testing.assert_allclose(found[3], probabilities.mean(axis=0))  # it has no image


def naive_reverse(probabilities: relationship.Floats, given_source: relationship.Floats) -> relationship.Floats:
    """Bayes' rule, one pair after the other; `given_source` is p(t | s), [S, T]."""
    sources, targets = given_source.shape
    found = np.zeros((targets, sources))
    for t in range(targets):
        whole = sum(given_source[s, t] * probabilities[:, s].mean() for s in range(sources))
        for s in range(sources):
            found[t, s] = given_source[s, t] * probabilities[:, s].mean() / whole
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_reverse_is_bayes_rule_on_a_calibrated_regression(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The regression, the choice of its penalty and of its scale each written out with other means."""
    from scipy.optimize import minimize
    from sklearn.model_selection import StratifiedKFold

    monkeypatch.setattr(relationship, "STRENGTHS", (10.0, 0.1))
    probabilities, labels = images(8, 1.0)
    probabilities, labels = probabilities[labels < classes], labels[labels < classes]

    def fit(x: relationship.Floats, y: relationship.Ints, c: float) -> relationship.Floats:
        """C * sum of the cross-entropies + |w|^2 / 2; of two classes, of the difference of their weights."""

        def loss(flat: relationship.Floats) -> float:
            if classes == 2:
                weights, penalty = np.stack([-flat / 2, flat / 2]), (flat**2).sum() / 2
            else:
                weights = flat.reshape(classes, 6)
                penalty = (weights**2).sum() / 2
            chances = softmax(x @ weights.T, axis=1)
            return float(penalty - c * np.log(chances[np.arange(len(y)), y]).sum())

        flat = minimize(loss, np.zeros(6 if classes == 2 else classes * 6), method="BFGS", options={"gtol": 1e-6}).x
        return np.stack([-flat / 2, flat / 2]) if classes == 2 else flat.reshape(classes, 6)

    told = {c: np.zeros((len(labels), classes)) for c in (10.0, 0.1)}
    for seen, held in StratifiedKFold(4, shuffle=True, random_state=0).split(probabilities, labels):
        for c, logits in told.items():
            logits[held] = probabilities[held] @ fit(probabilities[seen], labels[seen], c).T
    c = max(told, key=lambda c: np.mean(told[c].argmax(axis=1) == labels))
    scales = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 4001))
    rows = np.arange(len(labels))
    scale = min(scales, key=lambda a: -np.log(np.maximum(softmax(a * told[c], axis=1)[rows, labels], 1e-300)).mean())
    expected = naive_reverse(probabilities, softmax(scale * fit(probabilities, labels, c).T, axis=1))
    np.testing.assert_allclose(relationship.reverse(probabilities, labels, classes), expected, atol=5e-3)


def test_both_find_the_classes_that_a_class_looks_like_and_reverse_is_the_surer() -> None:
    probabilities, labels = images(20, 3.0)
    direct, reverse = relationship.direct(probabilities, labels, 3), relationship.reverse(probabilities, labels, 3)
    for found in (direct, reverse):
        np.testing.assert_allclose(found.sum(axis=1), 1)
        for label in range(3):
            assert set(np.argsort(-found[label])[:2]) == {2 * label, 2 * label + 1}
    share = [[found[t, 2 * t : 2 * t + 2].sum() for t in range(3)] for found in (direct, reverse)]
    assert min(share[1]) > max(share[0])


def test_one_image_of_a_class_leaves_none_to_judge_by() -> None:
    probabilities, labels = images(3, 2.0)
    with pytest.raises(ValueError, match="one training image only"):
        relationship.reverse(probabilities[:7], labels[:7], 3)


def test_a_class_without_images_is_matched_with_all() -> None:
    probabilities, labels = images(6, 2.0)
    found = relationship.reverse(probabilities, labels, 5)
    np.testing.assert_allclose(found[3:], np.stack([probabilities.mean(axis=0)] * 2))
