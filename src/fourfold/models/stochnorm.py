"""Batch norm that trusts stored statistics for some channels and the batch's for others, anew in each step."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold.config import ConfigError

if TYPE_CHECKING:
    from fourfold.models import TransferModel

P = 0.5  # of the batch's own statistics; the authors' choice throughout
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class StochNorm(nn.modules.batchnorm._BatchNorm):
    """y = s y_batch + (1 - s) y_stored, s of each channel drawn from Bernoulli(`P`) in each step of training.

    Stochastic normalization (Kou et al. 2020, "Stochastic Normalization", NeurIPS, eq. 4). In training the stored statistics
    follow the batches after they were used; evaluation, parameters and state are those of batch norm. Draws torch's global
    generator.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # of as many dimensions as the layer took before

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...]"""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = (self.weight, self.bias, False, 0.0, self.eps)
        stored = functional.batch_norm(input, self.running_mean.clone(), self.running_var.clone(), *scale)
        chosen = torch.rand(input.shape[1]).to(input.device) < P  # on the CPU, whose generator a resume puts back everywhere
        return torch.where(chosen.view(1, -1, *[1] * (input.ndim - 2)), super().forward(input), stored)


def replace(model: "TransferModel") -> None:
    """Put a `StochNorm` with the same parameters and statistics in the place of every batch norm. Changes the network.

    Raises:
        ConfigError: it has no plain batch norm with statistics, weights and biases.
    """
    norms = {name: m for name, m in model.net.named_modules() if type(m) in PLAIN and m.affine and m.track_running_stats}
    if not norms:
        raise ConfigError(
            f"freeze_strategy.norm_stats=stochastic replaces batch norm, but {type(model.net).__name__} has none of torch's: "
            "choose a model that has (such as resnet18), or norm_stats=follow"
        )
    for name, norm in norms.items():
        new = StochNorm(1)
        new.__dict__ = norm.__dict__  # everything that the layer has and remembers
        model.net.set_submodule(name, new)
