"""Where a run is: everything about its progress that is neither a weight nor a random number."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Proof:
    """That what one phase froze is, bit for bit, what it was when the phase began."""

    phase: int
    epochs: tuple[int, int]  # first and last epoch of the phase
    tensors: int
    before: str
    after: str | None = None  # None while the phase runs


@dataclass
class State:
    """Where a run is. `epoch` is the one to train next, of which `step_in_epoch` steps are done already."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0  # over the images of this epoch so far
    images: int = 0
    scores: list[float] = field(default_factory=list)  # of all validations, higher is better
    best_score: float | None = None
    best_epoch: int = -1
    best: dict[str, Any] = field(default_factory=dict)  # metrics of the best validation
    train_loss: float = float("nan")  # of the last whole epoch
    seconds: float = 0.0
    proofs: list[Proof] = field(default_factory=list)

    @property
    def waited(self) -> int:
        """Validations since the best one."""
        return len(self.scores) - 1 - self.scores.index(max(self.scores)) if self.scores else 0
