"""One optimizer step of the heads of many runs: SGD's, Adam's or AdamW's, on their parameters laid over each other.

A call of an optimizer takes ten times as long as what it computes for a head. What these three do to a number depends on no
other number, so a few operations do it to a stack of heads, each at its own rates, with the numbers of each head alone but
for rounding (the formulas are those of `torch.optim`, which compute in the same order).
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fourfold import optim

OTHERWISE = ("dampening", "maximize", "amsgrad", "capturable", "differentiable")  # settings of which no stack knows


def kind(optimizer: Optimizer) -> Hashable:
    """Optimizers of the same kind can step as one; their rates, decays and other numbers may differ."""
    groups = optimizer.param_groups
    plain = not any(group.get(setting) for group in groups for setting in OTHERWISE)
    if not plain or type(optimizer) not in (SGD, Adam, AdamW) or any(torch.is_tensor(group["lr"]) for group in groups):
        return None
    ways = {(group.get("nesterov"), group.get("decoupled_weight_decay", type(optimizer) is AdamW)) for group in groups}
    return (type(optimizer) is SGD, *ways) if len(ways) == 1 else None


def joined(
    optimizers: Sequence[Optimizer], parameters: Sequence[Sequence[Tensor]], stacks: Sequence[Tensor], factors: np.ndarray
) -> "Stacked":
    """What steps in the place of these optimizers until it parts.

    Args:
        optimizers: K of one kind.
        parameters: Of each optimizer one per stack, all it has.
        stacks: [K, ...] each; a parameter is its place in a stack.
        factors: [steps, K]; on the rates of each optimizer, in the coming steps.
    """
    what = kind(optimizers[0])
    way = OneByOne if what is None else StackedSgd if isinstance(optimizers[0], SGD) else StackedAdam
    return way(optimizers, parameters, stacks, factors)


class Stacked(ABC):
    """Several optimizers, as one."""

    MEMORY: tuple[str, ...] = ()  # what an optimizer remembers of each number

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        parameters: Sequence[Sequence[Tensor]],
        stacks: Sequence[Tensor],
        factors: np.ndarray,
    ) -> None:
        """As `joined` has it."""
        self.optimizers, self.parameters, self.factors = optimizers, parameters, factors
        self.stacks = [stack.flatten(1) for stack in stacks]  # [K, numbers of a head], the same memory
        self.groups: list[list[dict[str, Any]]] = []  # of each stack: where each head's settings are
        for its in zip(*parameters, strict=True):
            where = [{id(each): group for group in one.param_groups for each in group["params"]} for one in optimizers]
            self.groups.append([groups[id(parameter)] for groups, parameter in zip(where, its, strict=True)])
        self.memory = [{name: self._gathered(i, name).flatten(1) for name in self.MEMORY} for i in range(len(self.stacks))]

    @abstractmethod
    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        """Change the stacks.

        Args:
            step: Of those that `factors` has.
            gradients: Of each stack, in its shape; they are used up, since a stack may be large.
        """

    def part(self, steps: int) -> None:
        """Give each optimizer what it has to remember, after so many steps."""
        for i, memory in enumerate(self.memory):
            for k, (optimizer, its) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
                state, parameter = optimizer.state[its[i]], its[i]
                for name, stack in memory.items():
                    state[name] = stack[k].view_as(parameter).clone()

    def _gathered(self, i: int, name: str) -> Tensor:
        """What the optimizers remember of a stack, zero where they have not begun."""
        there = [(one.state[its[i]].get(name), its[i]) for one, its in zip(self.optimizers, self.parameters, strict=True)]
        return torch.stack([torch.zeros_like(parameter) if kept is None else kept for kept, parameter in there])

    def _numbers(self, i: int, values: Any) -> Tensor:
        """Numbers of each head, [..., K], as [..., K, 1] beside a stack."""
        return torch.as_tensor(np.asarray(values)).to(self.stacks[i])[..., None]

    def _setting(self, i: int, name: str) -> np.ndarray:
        return np.array([group[name] for group in self.groups[i]])

    def _rates(self, i: int) -> np.ndarray:
        """[steps, K]."""
        return self.factors * self._setting(i, "initial_lr")


class OneByOne(Stacked):
    """Any others: each steps by itself."""

    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        for k, (optimizer, its) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
            for parameter, gradient in zip(its, gradients, strict=True):
                parameter.grad = gradient[k]
            optim.set_factor(optimizer, float(self.factors[step, k]))
            optimizer.step()


class StackedSgd(Stacked):
    """With or without Nesterov's momentum."""

    MEMORY = ("momentum_buffer",)

    def __init__(self, *given: Any) -> None:
        """As `joined` has it."""
        super().__init__(*given)
        every = range(len(self.stacks))
        self.rates = [self._numbers(i, -self._rates(i)) for i in every]
        self.decays = [self._numbers(i, self._setting(i, "weight_decay")) for i in every]
        self.momenta = [self._numbers(i, self._setting(i, "momentum")) for i in every]

    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        for i, (stack, gradient) in enumerate(zip(self.stacks, gradients, strict=True)):
            momentum, moving = self.momenta[i], self.memory[i]["momentum_buffer"]
            change = gradient.flatten(1).addcmul_(stack, self.decays[i])
            moving.mul_(momentum).add_(change)
            change = change.addcmul_(moving, momentum) if self.groups[i][0]["nesterov"] else moving
            stack.addcmul_(change, self.rates[i][step])


class StackedAdam(Stacked):
    """With weight decay in the gradient, or apart from it as AdamW has it."""

    MEMORY = ("exp_avg", "exp_avg_sq")

    def __init__(self, *given: Any) -> None:
        """As `joined` has it."""
        super().__init__(*given)
        self.coefficients: list[dict[str, Tensor]] = []
        self.taken: list[list[float]] = []  # steps, of each stack by each optimizer
        for i, groups in enumerate(self.groups):
            decays, rates = self._setting(i, "weight_decay"), self._rates(i)
            states = [one.state[its[i]] for one, its in zip(self.optimizers, self.parameters, strict=True)]
            self.taken.append([float(state.get("step", 0)) for state in states])
            steps = np.array(self.taken[i]) + 1 + np.arange(len(rates))[:, None]  # [steps, K]
            first, second = np.array([group["betas"] for group in groups]).T
            told = {
                "decay": decays,
                "keep": 1 - rates * decays,
                "first": 1 - first,
                "second": second,
                "second_new": 1 - second,
                "eps": self._setting(i, "eps"),
                "root": np.sqrt(1 - second**steps),
                "rate": -rates / (1 - first**steps),
            }
            self.coefficients.append({name: self._numbers(i, values) for name, values in told.items()})
        self.decoupled = isinstance(self.optimizers[0], AdamW) or self.groups[0][0].get("decoupled_weight_decay", False)

    def step(self, step: int, gradients: Sequence[Tensor]) -> None:
        for stack, gradient, memory, of in zip(self.stacks, gradients, self.memory, self.coefficients, strict=True):
            change = gradient.flatten(1)
            if self.decoupled:
                stack.mul_(of["keep"][step])
            else:
                change.addcmul_(stack, of["decay"])
            mean, square = memory["exp_avg"], memory["exp_avg_sq"]
            mean.lerp_(change, of["first"])
            square.mul_(of["second"]).add_(change.square_().mul_(of["second_new"]))
            spread = torch.sqrt(square, out=change).div_(of["root"][step]).add_(of["eps"])
            stack.add_(torch.div(mean, spread, out=spread).mul_(of["rate"][step]))

    def part(self, steps: int) -> None:
        super().part(steps)
        for i, taken in enumerate(self.taken):
            for k, (optimizer, its) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
                place = its[i].device if self.groups[i][k]["fused"] else "cpu"  # where torch wants it
                optimizer.state[its[i]]["step"] = torch.full((), taken[k] + steps, dtype=torch.float32, device=place)
