"""The exact linear probe finds the optimum that another library finds, and chooses its penalty on validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fourfold import data, models
from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.files import read_json, read_jsonl
from fourfold.run import run
from fourfold.trial import NoTrial, Pruned

TINY = [
    "dataset=digits", "dataset.shots=10", "dataset.val_size=60", "dataset.test_size=40", "model=micro_resnet",
    "freeze=classifier_only", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false", "logger=none",
]  # fmt: skip
PROBE = ["optimizer=lbfgs", "optimizer.kwargs.l2_max=100.0", "optimizer.kwargs.l2_min=0.01", "trainer.epochs=5"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "start-0123456789ab"
    run(compose([*TINY, "freeze=from_scratch", "trainer.epochs=1"]), folder)
    return folder / "best.pt"


def features(config: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What the backbone gives for a split, by the network alone: no store, no cut."""
    model = models.create(config.model, 10)
    splits = data.load_splits(config.dataset, config.transform, model.preprocessing, config.seed)
    part: Any = getattr(splits, name)
    images = data.normalizer(model.preprocessing)(torch.stack([part[i][0] for i in range(len(part))]))
    model.net.head = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        return model.net.eval()(images).double().numpy(), part.labels.numpy()


def test_every_penalty_reaches_the_optimum_of_scikit_learn(weights: Path, tmp_path: Path) -> None:
    config = compose([*TINY, *PROBE, f"model.weights={weights}", f"paths.cache={tmp_path}"])
    result = run(config, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [row["l2"] for row in rows] == pytest.approx([100, 10, 1, 0.1, 0.01])
    x, y = features(config, "train")
    x_val, y_val = features(config, "val")
    for row in rows:
        peer = LogisticRegression(C=1 / row["l2"], tol=1e-10, max_iter=10_000).fit(x, y)
        log_p = peer.predict_log_proba(x)[np.arange(len(y)), y]
        assert row["train/loss"] == pytest.approx(-log_p.mean(), rel=1e-3)
        assert row["val/loss"] == pytest.approx(-peer.predict_log_proba(x_val)[np.arange(len(y_val)), y_val].mean(), rel=1e-3)
        assert row["val/acc"] == pytest.approx(peer.score(x_val, y_val), abs=1e-6)
    scores = [row["val/acc"] for row in rows]
    assert result["best_epoch"] == scores.index(max(scores))
    assert result["l2"] == rows[result["best_epoch"]]["l2"]
    peer = LogisticRegression(C=1 / result["l2"], tol=1e-10, max_iter=10_000).fit(x, y)
    head = torch.load(tmp_path / "run/best.pt", weights_only=True)["model"]["head.weight"]
    # softmax knows the weights up to a common shift, which the penalty sets to zero mean
    assert np.allclose(head.numpy(), peer.coef_, atol=2e-3 * np.abs(peer.coef_).max())


class Ends(NoTrial):
    def __init__(self) -> None:
        self.told = 0

    def report(self, value: float, step: int) -> None:
        self.told += 1

    def should_prune(self) -> bool:
        return self.told == 2


def test_a_probe_goes_on_where_it_was(weights: Path, tmp_path: Path) -> None:
    config = compose([*TINY, *PROBE, f"model.weights={weights}", f"paths.cache={tmp_path}"])
    straight = run(config, tmp_path / "straight")
    with pytest.raises(Pruned):
        run(config, tmp_path / "cut", trial=Ends())
    resumed = run(config, tmp_path / "cut")
    assert resumed["metrics"] == straight["metrics"]
    rows = [[{**row, "seconds": 0} for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("cut", "straight")]
    assert rows[0] == rows[1]
    assert read_json(tmp_path / "cut/result.json")["l2"] == straight["l2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["freeze=full"], "freeze_strategy.name=full trains more"),
        (["freeze=lp_ft"], "freeze_strategy.name=lp_ft trains more"),
        (["transform=light"], "transform.name=light"),
        (["cache.activations=off"], "cache.activations=off"),
        (["trainer.loss.name=focal"], "trainer.loss.name=focal"),
        (["dataset.loader.sampler=weighted"], "sampler=weighted"),
    ],
    ids=lambda value: str(value),
)
def test_what_is_no_linear_probe_is_refused_in_one_sentence(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match="optimizer=lbfgs") as refused:
        compose([*TINY, *PROBE, *words])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
