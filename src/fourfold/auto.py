"""`quadrant=auto`: before anything runs, the target is measured, and the quadrant where it lies becomes a strategy and a rate.

What was chosen is written as overrides, as if it had been typed: it is part of the run's identity, and the run is the same as
one that was given these values by hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.advice import EVIDENCE
from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.placement import Placement

AUTO = "quadrant=auto"
LR = "optimizer.lr"


@dataclass(frozen=True)
class Choice:
    """What a measured place says about a run."""

    similarity: str
    size: str
    strategy: str
    rates: tuple[float, float]  # of optimizer.lr, in multiples of the optimizer's usual one
    why: str

    @property
    def rate(self) -> float:
        """The middle of the rates, on a scale of powers."""
        return (self.rates[0] * self.rates[1]) ** 0.5


def asked(words: Sequence[str]) -> bool:
    """Whether the overrides leave the quadrant to be measured."""
    return any(word.lstrip("+") == AUTO for word in words)


def choose(placement: Placement) -> Choice:
    """The strategy that the measured evidence suggests, and the rates that were best in the calibration.

    Raises:
        ConfigError: the target has no place.
    """
    if placement.similarity is None:
        raise ConfigError(
            f"{AUTO} has nothing to choose by, since the lift is undefined ({placement.lift.undefined}): "
            "leave it out and give freeze= yourself"
        )
    similarity, size = placement.similarity, placement.size.nearest(placement.levels)
    low, high = placement.levels.rates[similarity]
    evidence = EVIDENCE[similarity, size]
    return Choice(similarity, size, evidence.suggested, (low, high), evidence.why)


def written(words: Sequence[str], choice: Choice, usual: float, searched: Sequence[str] = ()) -> list[str]:
    """The overrides with what was chosen in the place of `quadrant=auto`; what is typed beside it stays as it is.

    Args:
        words: In canonical spelling, `quadrant=auto` among them.
        choice: What was chosen.
        usual: `optimizer.lr` without a choice.
        searched: Keys that a sampler chooses.
    """
    name = f"{choice.similarity}_{choice.size}"
    textbook = compose([f"quadrant={name}"]).quadrant.textbook or "null"
    labels = {"name": name, "similarity": choice.similarity, "size": choice.size, "textbook": textbook}
    chosen = {"freeze_strategy": choice.strategy, LR: f"{usual * choice.rate:.3g}"}
    typed = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words} | {*searched}
    return [
        *(word for word in words if word.lstrip("+") != AUTO),
        *(f"quadrant.{key}={value}" for key, value in labels.items()),
        *(f"{key}={value}" for key, value in chosen.items() if key not in typed),
    ]


def told(placement: Placement, choice: Choice, words: Sequence[str]) -> str:
    """One line: what was measured, what was chosen, and why."""
    lift, shares = placement.lift, placement.shares
    chosen = ", ".join(word for word in words if word.startswith(("freeze_strategy=", f"{LR}="))) or "what was given"
    return (
        f"{AUTO}: lift {lift.value:.2f} ({lift.low:.2f} to {lift.high:.2f}), {placement.size.per_class:.4g} images per class: "
        f"{choice.similarity} ({shares[choice.similarity]:.0%} of the draws), {choice.size}; it suggests {choice.strategy} "
        f"({choice.why}) and rates of {choice.rates[0]:g} to {choice.rates[1]:g} times the usual one; taken: {chosen}"
    )
