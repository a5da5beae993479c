"""How well a network's features serve a target task, and how far its images lie from the source: pure functions on arrays.

Nothing here trains a network. `features` is always [N, D], one row per image of the target's TRAINING split; `labels` is [N].
A score is larger for features that serve better, a distance is larger for domains further apart. docs/transferability.md tells
what each is good for. The one to look at first is `lift`.
"""

from fourfold.transferability.benefit import Lift, lift, logme_gain
from fourfold.transferability.domain import (
    Moments,
    Prototypes,
    batch_norm_shift,
    domain_similarity,
    frechet_distance,
    mmd,
    moments,
    prototype_emd,
    prototypes,
    proxy_a_distance,
)
from fourfold.transferability.evidence import log_evidence, logme
from fourfold.transferability.prediction import leep, n_leep, nce
from fourfold.transferability.probe import Probe, knn_accuracy, linear_probe
from fourfold.transferability.separability import gbc, h_score, h_score_shrunk, transrate

__all__ = [
    "Lift",
    "Moments",
    "Probe",
    "Prototypes",
    "batch_norm_shift",
    "domain_similarity",
    "frechet_distance",
    "gbc",
    "h_score",
    "h_score_shrunk",
    "knn_accuracy",
    "leep",
    "lift",
    "linear_probe",
    "log_evidence",
    "logme",
    "logme_gain",
    "mmd",
    "moments",
    "n_leep",
    "nce",
    "prototype_emd",
    "prototypes",
    "proxy_a_distance",
    "transrate",
]
