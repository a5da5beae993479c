"""Domain adaptation: what images without labels of the domain that counts can do for a network that learns from others.

Batch-norm statistics are taken from them once (`recalibrate`), or a term of the loss brings their features and those of the
labelled images together. The test split has no part in it: see `data.load_unlabelled` for where the images come from.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold.config import AdaptConfig, ConfigError
from fourfold.loop import Kit, Penalty, autocast
from fourfold.models import norms
from fourfold.models.listening import entering, listen, pooled

Draw = Callable[[int], Tensor]  # how many -> this process's share of as many unlabelled images, drawn at random
DOMAIN = "domain_classifier"  # where a network keeps it
HIDDEN = 256  # width of its hidden layer
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernels, in units of the mean squared distance


def add_domain_classifier(net: nn.Module, head: str) -> None:
    """Give the network a `DomainClassifier` of what enters its head, which its own forward pass does not call.

    It learns with the head, and is saved with the network. Changes `net` and draws torch's global generator, after the head.
    """
    layer = net.get_submodule(head)
    net.add_module(DOMAIN, DomainClassifier(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels))  # type: ignore[arg-type]


class DomainClassifier(nn.Module):
    """Tells labelled (0) from unlabelled (1) features [N, D], and how much of the run it has seen."""

    seen: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        self.register_buffer("seen", torch.zeros(()))  # share of the run's labelled images, 0 to 1

    def forward(self, features: Tensor) -> Tensor:
        """[N, D] -> logits [N]"""
        return self.out(functional.relu(self.hidden(features)))[:, 0]


def dann(classifier: DomainClassifier, weight: float, images: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of features [N, D] and [M, D]: the classifier's mean cross-entropy, its gradient reversed for the features.

    Domain-adversarial training (Ganin et al. 2016, arXiv 1505.07818, eq. 9, 14 and 18): the gradient is multiplied by -weight *
    (2 / (1 + exp(-10 p)) - 1), p being the share of the run that is done.

    Args:
        classifier: Counts the labelled images.
        weight: In the end.
        images: Labelled images of the whole run.
    """

    def distance(first: Tensor, second: Tensor) -> Tensor:
        factor = weight * (2 / (1 + torch.exp(-10 * classifier.seen)) - 1)  # a tensor, so that nothing waits for the device
        classifier.seen += len(first) / images
        both = torch.cat([first, second])
        domains = torch.cat([first.new_zeros(len(first)), second.new_ones(len(second))])
        return functional.binary_cross_entropy_with_logits(classifier(_Reversed.apply(both, factor)), domains)

    return distance


class _Reversed(torch.autograd.Function):
    """The same values; gradients times -factor."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: Tensor) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def create(config: AdaptConfig, net: nn.Module, head: str, draw: Draw, kit: Kit, images: int) -> Penalty | None:
    """The term of the loss that `config` asks for: each micro-batch against as many unlabelled images; None where it has none.

    The network runs once more for it, in train mode: batch statistics that move see both domains. Under torchrun features are
    compared across all processes.

    Args:
        net: On its device.
        head: Name of its head; features are what enters it.
        draw: Draws from torch's global generator, so that a resumed run draws on.
        kit: Of the run.
        images: Labelled images of the whole run, those of each epoch counted again.
    """
    if config.name in ("none", "adabn"):
        return None
    weighed: Callable[[Tensor, Tensor], Tensor]
    if config.name == "dann":
        weighed = dann(net.get_submodule(DOMAIN), config.weight, images)  # type: ignore[arg-type]
    else:
        distance = {"coral": coral, "mmd": mmd}[config.name]
        weighed = lambda first, second: config.weight * distance(first, second)  # noqa: E731
    heard = listen(net, {head: entering})

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        labelled = kit.ranks.rows(pooled(heard.pop(head)).float())
        with autocast(kit):
            net(draw(len(labelled)))
        return weighed(labelled, kit.ranks.rows(pooled(heard.pop(head)).float()))

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


def recalibrate(net: nn.Module, batches: Iterable[Tensor], kit: Kit) -> None:
    """Set the statistics of every batch norm to those of `batches`, as `norms.recalibrate` does (AdaBN, Li et al. 2016, arXiv
    1603.04779).

    Raises:
        ConfigError: the network has no batch norm with statistics.
    """
    if not norms.batch_norms(net):
        raise ConfigError(
            f"adapt=adabn renews the statistics of batch norm, but {type(net).__name__} has none: choose a model that has "
            "(such as resnet18), or adapt=none"
        )
    with autocast(kit):
        norms.recalibrate(net, batches)
