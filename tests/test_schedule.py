"""Schedules against torch's own, and the truths that make resuming free."""

import pytest
import torch

from fourfold import schedule
from fourfold.config import SchedulerConfig


def config(name: str, **changes) -> SchedulerConfig:
    return SchedulerConfig(
        **{
            "name": name,
            "warmup_epochs": 0.0,
            "min_factor": 0.0,
            "milestones": [0.6, 0.85],
            "gamma": 0.1,
            "patience": 1,
            **changes,
        }
    )


def factors(which: SchedulerConfig, steps: int = 5, epochs: int = 4) -> list[float]:
    return [schedule.factor(which, step, steps, epochs, []) for step in range(steps * epochs)]


def torch_factors(make, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_equals_torch() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.1), 20)
    assert factors(config("cosine", min_factor=0.1)) == pytest.approx(expected)


def test_step_equals_torch() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 17], 0.1), 20)
    assert factors(config("step")) == pytest.approx(expected)


def test_plateau_drops_as_often_as_torch() -> None:
    scores = [0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.3]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    peer = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=1, threshold=0)
    for i, score in enumerate(scores):
        peer.step(score)
        assert 0.1 ** schedule.drops(scores[: i + 1], 1) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    rising = factors(config("constant", warmup_epochs=0.8))[:6]
    assert rising == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_every_schedule_stays_above_zero_while_training() -> None:
    for name in ("constant", "cosine", "step", "plateau"):
        assert all(0 < value <= 1 for value in factors(config(name, warmup_epochs=1.0)))
    assert schedule.factor(config("cosine", warmup_epochs=5), 0, 1, 1, []) > 0  # a warm-up longer than the run
