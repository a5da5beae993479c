"""What an optimizer cannot be made of is refused in one sentence that says what to do."""

import pytest
from torch import nn

from fourfold import optim
from fourfold.config import ConfigError, OptimizerConfig


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("sgdd", {}, r"optimizer.name=sgdd is not one of timm's optimizers, did you mean sgd\?.* \(allowed: .*adamw"),
        ("lamb", {"fused": True}, r"'fused': True\} does not fit lamb .* remove it with ~optimizer.kwargs.fused$"),
        ("sgd", {"fused": True, "amsgrad": True}, r"does not fit sgd .* remove it with ~optimizer.kwargs.amsgrad$"),
        ("lbfgs", {"l2_max": 1.0}, "does not fit lbfgs .*: give it l2_max, l2_min, max_iter and tolerance$"),
    ],
)
def test_the_cure_names_what_is_wrong(name: str, kwargs: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        optim.create(nn.Linear(2, 2), [], OptimizerConfig(name, 0.1, 0.01, 0.0, 0.9, kwargs))
