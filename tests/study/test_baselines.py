"""What a cell tries before its sampler is asked: the textbook's choice, and what was best in an older study."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.study.baselines import OLDER, first, older, textbook
from study.synthetic import write_run

LR = FloatDistribution(1e-5, 1e-1, log=True)


def test_the_textbook_is_the_run_without_a_search_at_a_small_rate() -> None:
    config = compose(["optimizer=sgd", "optimizer.lr=0.05"])
    space = {
        "optimizer.lr": LR,
        "optimizer.weight_decay": FloatDistribution(0, 0.1),
        "scheduler": CategoricalDistribution(["cosine"]),
    }
    assert textbook(config, space) == {
        "optimizer.lr": "optimizer.lr=0.001",
        "optimizer.weight_decay": "optimizer.weight_decay=0.0001",
        "scheduler": "scheduler=cosine",
    }


def test_what_is_not_searched_is_left_to_the_sampler() -> None:
    space = {"optimizer.lr": FloatDistribution(1e-2, 1e-1), "trainer.clip_norm": FloatDistribution(0.1, 1.0)}
    assert textbook(compose(["optimizer=adamw"]), space) == {}


def test_an_older_study_gives_the_best_settings_of_what_is_most_alike(tmp_path: Path) -> None:
    for lr, val in ((1e-4, 0.5), (1e-3, 0.9), (1e-2, 0.8), (3e-3, 0.7), (0.5, 0.99)):
        write_run(tmp_path, strategy="full", lr=lr, val=val, test=0.1)
        write_run(tmp_path, strategy="classifier_only", lr=lr * 2, val=1 - val, test=0.99)
    config = compose(["freeze=full"])
    points = older(tmp_path, config, {"optimizer.lr": LR})
    assert points == [{"optimizer.lr": f"optimizer.lr={lr}"} for lr in (0.001, 0.01, 0.003)]  # 0.5 lies outside
    assert len(points) == OLDER
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no finished run: give the folder of an older study"):
        older(tmp_path / "empty", config, {"optimizer.lr": LR})


def test_points_come_once_and_in_order() -> None:
    a, b = {"x": "x=1"}, {"x": "x=2"}
    assert first(a, {}, b, {"x": "x=1"}) == (a, b)
