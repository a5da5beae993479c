"""The probe against scikit-learn's own cross-validation; nearest neighbours against a loop."""

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fourfold.transferability import knn_accuracy, linear_probe

FEATURES, LABELS = load_iris(return_X_y=True)
G = np.random.default_rng(0)


def test_the_probe_is_scikit_learns_pipeline() -> None:
    folds = StratifiedKFold(4, shuffle=True, random_state=5)
    noisy = FEATURES + G.normal(size=FEATURES.shape)
    expected = {}
    for c in (0.01, 0.1, 1.0):
        accuracies = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=c)), noisy, LABELS, cv=folds)
        sizes = [len(held) for _, held in folds.split(noisy, LABELS)]
        expected[c] = np.average(accuracies, weights=sizes)
    probe = linear_probe(noisy, LABELS, seed=5)
    assert probe.accuracy == pytest.approx(expected[probe.c])
    assert probe.accuracy == pytest.approx(max(expected.values()))
    assert probe.correct.mean() == probe.accuracy


def test_the_probe_ignores_the_unit_and_constant_features() -> None:
    padded = np.concatenate([FEATURES * [1, 1e-6, 1e6, 3], np.full((150, 1), 0.1)], axis=1)
    assert linear_probe(padded, LABELS).correct.tolist() == linear_probe(FEATURES, LABELS).correct.tolist()


@pytest.mark.parametrize("k", [1, 7, 149, 1000])
def test_neighbours_equal_a_loop(k: int) -> None:
    points = FEATURES - FEATURES.mean(axis=0)
    right = 0
    for i in range(150):
        cosines = {
            j: points[i] @ points[j] / np.linalg.norm(points[i]) / np.linalg.norm(points[j]) for j in range(150) if j != i
        }
        votes = np.zeros(3)
        for j in sorted(cosines, key=cosines.__getitem__, reverse=True)[:k]:
            votes[LABELS[j]] += np.exp(cosines[j] / 0.07)
        right += votes.argmax() == LABELS[i]
    assert knn_accuracy(FEATURES, LABELS, k=k) == pytest.approx(right / 150, abs=1 / 150)  # duplicates may tie


def test_neighbours_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = knn_accuracy(FEATURES, LABELS)
    monkeypatch.setattr("fourfold.transferability.probe.ROWS", 64)
    assert knn_accuracy(FEATURES, LABELS) == whole
