"""The stored statistics of batch norm."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Layers that normalise by stored statistics."""
    return [each for each in net.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of every batch norm to the mean of those of `batches`, in one pass. Changes `net` in place.

    In the pass each layer normalises by the batch's own statistics. Where there is no batch norm nothing is run.

    Args:
        batches: Images as the network is given them; all of a size, since each counts the same.
    """
    norms = batch_norms(net)
    if not norms:
        return
    training, momenta = net.training, [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for images in batches:
        net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
