"""Domain adaptation: what images without labels of the domain that counts can do for a network that learns from others.

Batch-norm statistics are taken from them once (`recalibrate`), or a term of the loss brings their features and those of the
labelled images together. The test split has no part in it: see `data.load_unlabelled` for where the images come from.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.config import AdaptConfig, ConfigError
from fourfold.loop import Kit, autocast

Penalty = Callable[
    [Any, Tensor], Tensor
]  # (inputs as the network was given them, targets) -> a scalar, after each forward pass
Draw = Callable[[int], Tensor]  # how many -> as many unlabelled images as the network is given them, drawn at random
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, in units of the mean squared distance


def create(config: AdaptConfig, net: nn.Module, head: str, draw: Draw, kit: Kit) -> Penalty | None:
    """The term of the loss that `config` asks for: each micro-batch against as many unlabelled images; None where it has none.

    The network runs once more for it, in train mode: batch statistics that move see both domains.

    Args:
        net: On its device.
        head: Name of its head; features are what enters it.
        draw: Draws from torch's global generator, so that a resumed run draws on.
        kit: Of the run.
    """
    distances = {"coral": coral, "mmd": mmd}
    if config.name not in distances:
        return None
    distance = distances[config.name]
    entering: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            features = args[0]
            entering[:] = [features if features.ndim == 2 else features.flatten(2).mean(2)]  # maps: mean over positions

    net.get_submodule(head).register_forward_hook(note)

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        labelled = entering.pop()
        with autocast(kit):
            net(draw(len(targets)))
        return config.weight * distance(labelled.float(), entering.pop().float())

    return penalty


def coral(first: Tensor, second: Tensor) -> Tensor:
    """|C1 - C2|^2 / (4 D^2), C being the covariances of features [N, D] and [M, D], at least two of each.

    Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719, eq. 1 to 3).
    """
    difference = torch.cov(first.T) - torch.cov(second.T)
    return difference.square().sum() / (4 * first.shape[1] ** 2)


def mmd(first: Tensor, second: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of features [N, D] and [M, D]: 0 for equal samples, and never below.

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k being the mean of Gaussian kernels exp(-|x - y|^2 / (b s)): s is the mean
    squared distance of all pairs, held constant, and b one of `BANDWIDTHS` (DAN, Long et al. 2015, arXiv 1502.02791, eq. 1).
    Ours weighs the kernels alike and takes all pairs, where the paper learns the weights and takes a pair of each image.
    """
    both = torch.cat([first, second])
    lengths = both.square().sum(1)
    squared = (lengths[:, None] + lengths - 2 * both @ both.T).clamp(min=0)  # [N + M, N + M]
    scale = squared.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-squared / (b * scale)) for b in BANDWIDTHS]).mean(0)
    n = len(first)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor], kit: Kit) -> None:
    """Set the statistics of every batch norm to the mean of those of `batches`, in one pass. Changes `net` in place.

    AdaBN (Li et al. 2016, arXiv 1603.04779). In the pass each layer normalises by the batch's own statistics.

    Args:
        batches: Images as the network is given them; all of a size, since each counts the same.

    Raises:
        ConfigError: the network has no batch norm with statistics.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ConfigError(
            f"adapt=adabn renews the statistics of batch norm, but {type(net).__name__} has none: choose a model that has "
            "(such as resnet18), or adapt=none"
        )
    training, momenta = net.training, [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for images in batches:
        with autocast(kit):
            net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
