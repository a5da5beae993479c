"""Optimizers of many heads, stepping as one, do what each does alone: to the weights, and to what they remember."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fourfold import stacked
from fourfold.zoo import create_optimizer_v2

HEADS, STEPS = 4, 6


def lamb(groups: list[dict[str, Any]], **settings: Any) -> Optimizer:
    return create_optimizer_v2(groups, opt="lamb", **settings)


def made(way: Any, own: dict[str, Any], k: int, settings: dict[str, Any]) -> tuple[Optimizer, list[Tensor]]:
    """The optimizer of head `k`, at its own rate, over a weight with decay and a bias without."""
    torch.manual_seed(k)
    parameters = [torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(3))]
    rates = [0.01 * (k + 1), 0.02 * (k + 1)]
    groups = [
        {"params": [each], "lr": lr, "initial_lr": lr, "weight_decay": 0.1 * k * (each.ndim > 1)}
        for each, lr in zip(parameters, rates, strict=True)
    ]
    return way(groups, **settings, **{name: value[k] for name, value in own.items()}), [each.data for each in parameters]


@pytest.mark.parametrize(
    ("way", "settings", "own"),
    [
        (SGD, {"fused": True, "nesterov": True, "momentum": 0.9}, {}),
        (SGD, {}, {"momentum": (0.0, 0.5, 0.9, 0.0)}),
        (SGD, {"momentum": 0.9, "dampening": 0.5}, {}),  # of which the stack does not know
        (Adam, {"fused": True}, {}),
        (
            AdamW,
            {"fused": True},
            {"betas": ((0.9, 0.999), (0.8, 0.9), (0.5, 0.99), (0.9, 0.9)), "eps": (1e-8, 1e-6, 0.1, 1.0)},
        ),
        (AdamW, {"amsgrad": True}, {}),
        (lamb, {}, {}),  # looks at all numbers of a head
    ],
    ids=["nesterov", "sgd", "dampened", "adam", "adamw", "amsgrad", "lamb"],
)
def test_a_stack_steps_as_its_optimizers_do(way: Any, settings: dict[str, Any], own: dict[str, Any]) -> None:
    torch.manual_seed(7)
    gradients = [[torch.randn(HEADS, 3, 5), torch.randn(HEADS, 3)] for _ in range(STEPS)]
    factors = np.random.default_rng(0).uniform(0.1, 1, (STEPS, HEADS))

    alone = [made(way, own, k, settings) for k in range(HEADS)]
    for step in range(STEPS):
        for k, (optimizer, _) in enumerate(alone):
            for group, gradient in zip(optimizer.param_groups, gradients[step], strict=True):
                group["lr"] = group["initial_lr"] * factors[step, k]
                group["params"][0].grad = gradient[k].clone()
            optimizer.step()

    among = [made(way, own, k, settings) for k in range(HEADS)]
    assert len({stacked.kind(optimizer) for optimizer, _ in among}) == 1
    for start, stop in ((0, 2), (2, 2), (2, STEPS)):  # what they remember is theirs between two epochs
        learning = [[group["params"][0] for group in optimizer.param_groups] for optimizer, _ in among]
        stacks = [torch.stack([its[i].data for its in learning]) for i in range(2)]
        for k, its in enumerate(learning):
            for parameter, stack in zip(its, stacks, strict=True):
                parameter.data = stack[k]
        both = stacked.joined([optimizer for optimizer, _ in among], learning, stacks, factors[start:stop])
        for step in range(stop - start):
            both.step(step, [gradient.clone() for gradient in gradients[start + step]])
        both.part(stop - start)

    for (lone, _), (one, _) in zip(alone, among, strict=True):
        for expected, group in zip(lone.param_groups, one.param_groups, strict=True):
            (wanted,), (found,) = expected["params"], group["params"]
            torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-7)
            assert one.state[found].keys() >= {name for name, kept in lone.state[wanted].items() if kept is not None}
            for name, kept in lone.state[wanted].items():
                if kept is not None:
                    torch.testing.assert_close(one.state[found][name], kept, rtol=2e-6, atol=1e-7)


def test_what_cannot_step_as_one() -> None:
    parameter = [torch.nn.Parameter(torch.zeros(2))]
    assert stacked.kind(SGD(parameter)) == stacked.kind(SGD(parameter, lr=0.5, momentum=0.9, weight_decay=0.1))
    assert stacked.kind(SGD(parameter)) != stacked.kind(SGD(parameter, momentum=0.9, nesterov=True))
    assert stacked.kind(Adam(parameter)) != stacked.kind(AdamW(parameter))
    for optimizer in (SGD(parameter, maximize=True), Adam(parameter, amsgrad=True), lamb([{"params": parameter}])):
        assert stacked.kind(optimizer) is None
