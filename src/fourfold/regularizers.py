"""A further term of the training loss, about what the network brought with it: its starting weights, features, or classifier.

A term is a function of one micro-batch. Those that look at activations listen to the network with hooks that are silent
while no gradient is wanted, so that validation and testing cost nothing.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourfold import relationship
from fourfold.config import ConfigError, RegularizerConfig, nearest
from fourfold.loop import Penalty
from fourfold.models import Block, TransferModel, outputs
from fourfold.models.listening import entering, leaving, listen, pooled
from fourfold.models.replay import replaying
from fourfold.ranks import Ranks

Sample = Callable[[int], tuple[Tensor, Tensor]]  # how many -> as many training images as the network is given them, and classes
Whole = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # all training images as evaluation shows them, and classes, in batches
SOURCE_HEAD = "source_head"  # where a network keeps the classifier that it had before
NEED_IMAGES = ("feature_distillation", "delta")
LAYERS = 4  # blocks that are compared where none are named
SOFTNESS = 5.0  # of DELTA's attention: its authors' code divides by it, which the paper leaves out
SHRINK = 1e-3  # of the probe behind that attention


def create(config: RegularizerConfig, model: TransferModel, sample: Sample, whole: Whole, ranks: Ranks) -> Penalty | None:
    """The term that `config` asks for; None for none.

    Args:
        config: Which term, and how much of it.
        model: On its device, with the weights that it starts from: they are copied.
        sample: Gives the first training images; asked only where a term must know them.
        whole: Gives all of them; likewise.
        ranks: The processes that share each micro-batch.

    Raises:
        ConfigError: a layer is named that the network does not have, or the classes cannot be matched.
    """
    if config.name == "l2_sp":
        return l2_sp(model.net, transferred(model), config.weight, config.head_weight)
    if config.name == "bss":
        return bss(model.net, model.heads[0], config.weight, config.smallest, ranks)
    if config.name == "feature_distillation":
        return feature_distillation(model.net, layers(model, config.layers), config.weight)
    if config.name == "delta":
        held = layers(model, config.layers)
        channels = attention(model, held, *sample(config.attention_images)) if config.attention_images else None
        return delta(model.net, held, transferred(model), config.weight, config.head_weight, channels)
    if config.name == "co_tuning":
        matched = matches(model, whole(), config.relationship, config.temperature)
        return co_tuning(model.net, model.heads[0], matched, config.weight)
    return None


def add_source_head(model: TransferModel) -> None:
    """Give the network the classifier that it had before its new head; its own forward pass does not call it.

    It learns with the last block, at its rate, since it was transferred as that was, and is saved with the network. Changes
    `model`.

    Raises:
        ConfigError: it is not known.
    """
    if model.source_head is None:
        raise ConfigError(
            f"regularizer=co_tuning needs the classifier of the starting weights ({model.weights.source}), but they bring "
            "none that is one Linear layer or one convolution of 1 x 1: choose other model.weights, or another regularizer"
        )
    model.net.add_module(SOURCE_HEAD, model.source_head)
    *before, last = model.blocks
    own = [f"{SOURCE_HEAD}.{name}" for name, _ in model.source_head.named_parameters()]
    model.blocks = (*before, Block(last.name, (*last.params, *own)))


def needs_images(config: RegularizerConfig) -> bool:
    """Whether the term runs the starting network beside, so that stored activations cannot stand for images."""
    return config.name in NEED_IMAGES


def transferred(model: TransferModel) -> frozenset[str]:
    """Names of the parameters that come from the starting weights: the backbone's, without what a checkpoint did not fill and
    without adapters."""
    anew = {*model.weights.missing, *model.weights.mismatched, *model.adapters}
    return frozenset(name for block in model.blocks for name in block.params if name not in anew)


def l2_sp(net: nn.Module, transferred: frozenset[str], weight: float, head_weight: float) -> Penalty:
    """weight / 2 |w - w0|^2 + head_weight / 2 |v|^2 (Li, Grandvalet and Davoine 2018, arXiv 1802.01483, eq. 3).

    w are the transferred parameters, w0 their values now, v all others; both as far as they learn, since the rest is constant.
    """
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters() if name in transferred}

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        learning = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
        off = [weight * (w - start[name]).square().sum() for name, w in learning if name in start]
        anew = [head_weight * v.square().sum() for name, v in learning if name not in start]
        return torch.stack([*off, *anew]).sum() / 2

    return penalty


def bss(net: nn.Module, head: str, weight: float, smallest: int, ranks: Ranks) -> Penalty:
    """weight * (the squares of the `smallest` lowest singular values of a micro-batch's features [N, D], summed).

    Batch spectral shrinkage (Chen et al. 2019, "Catastrophic Forgetting Meets Negative Transfer", NeurIPS, eq. 4). Features are
    what enters the head; where that is a convolution, their mean over the positions.
    """
    heard = listen(net, {head: entering})

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        features = ranks.rows(pooled(heard.pop(head)).float())
        return weight * torch.linalg.svdvals(features)[-smallest:].square().sum()  # in falling order

    return penalty


def feature_distillation(net: nn.Module, layers: Sequence[str], weight: float) -> Penalty:
    """weight / 2 * (squared distances of feature vectors from the starting network's, mean over images and positions, summed
    over the layers).

    The feature maps of FitNets (Romero et al. 2015, arXiv 1412.6550, eq. 3) with the starting network as the teacher; DELTA
    (arXiv 1901.09229) without its attention.
    """
    distances = _distances(net, layers)

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        return weight / 2 * torch.stack([distance.sum() for distance in distances(inputs)]).sum()

    return penalty


def delta(
    net: nn.Module,
    layers: Sequence[str],
    transferred: frozenset[str],
    weight: float,
    head_weight: float,
    channels: Sequence[Tensor] | None,
) -> Penalty:
    """weight / 2 * (C a_j times the squared distance of channel j from the starting network's, mean over images and positions,
    summed over the layers and their C channels) + head_weight / 2 |v|^2, v being what is not transferred.

    DELTA (Li et al. 2019, arXiv 1901.09229, eq. 5 to 7). Ours has a factor of C, as its authors' code has, so that equal
    attention (`channels` None: a_j = 1 / C) gives `feature_distillation`.
    """
    distances = _distances(net, layers)

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        found = distances(inputs)
        weighed = found if channels is None else [len(a) * a * d for a, d in zip(channels, found, strict=True)]
        anew = [v.square().sum() for name, v in net.named_parameters() if v.requires_grad and name not in transferred]
        return (weight * torch.stack([each.sum() for each in weighed]).sum() + head_weight * torch.stack(anew).sum()) / 2

    return penalty


def co_tuning(net: nn.Module, head: str, matched: Tensor, weight: float) -> Penalty:
    """weight * (the mean cross-entropy of the source head's answers against p(source class | the image's target class)).

    Co-Tuning (You, Kou, Long and Wang 2020, "Co-Tuning for Transfer Learning", NeurIPS). Features are what enters the head, and
    the source head is given them as well; blended labels blend their source classes.

    Args:
        net: Has its source head: see `add_source_head`.
        head: Name of its new head.
        matched: [target classes, source classes], rows sum to 1.
        weight: Of the term.
    """
    heard = listen(net, {head: entering})
    source = net.get_submodule(SOURCE_HEAD)

    def penalty(inputs: Any, targets: Tensor) -> Tensor:
        wanted = targets.to(matched.dtype) @ matched if targets.is_floating_point() else matched[targets]
        return weight * functional.cross_entropy(pooled(source(heard.pop(head).float())), wanted)

    return penalty


def matches(model: TransferModel, whole: Iterable[tuple[Tensor, Tensor]], approach: str, temperature: float) -> Tensor:
    """p(source class | target class), [T, S], by what the source head of the starting network says of the training images.

    Changes nothing and draws nothing.

    Args:
        model: Has its source head: see `add_source_head`.
        whole: batches of images as the network is given them, [N, ...], and their classes [N].
        approach: `reverse` or `direct`, see `relationship`.
        temperature: of the source head's softmax.

    Raises:
        ConfigError: a class has too few images for the approach.
    """
    net, head = copy.deepcopy(model.net).eval().requires_grad_(False), model.heads[0]
    heard = listen(net, {head: entering}, always=True)
    said, classes, outputs = [], [], 0
    with torch.no_grad():
        for images, targets in whole:
            outputs = net(images).shape[1]
            logits = pooled(net.get_submodule(SOURCE_HEAD)(heard.pop(head).float()))
            said.append(torch.softmax(logits.double() / temperature, dim=1).cpu())
            classes.append(targets.cpu())
    learn = {"reverse": relationship.reverse, "direct": relationship.direct}[approach]
    try:
        found = learn(torch.cat(said).numpy(), torch.cat(classes).numpy(), outputs)
    except ValueError as reason:
        raise ConfigError(
            f"regularizer.relationship={approach} judges by images that were not learnt from, but {reason}: choose "
            "regularizer.relationship=direct, or give more images"
        ) from reason
    return torch.from_numpy(found).float().to(next(model.net.parameters()).device)


def attention(model: TransferModel, layers: Sequence[str], images: Tensor, targets: Tensor) -> list[Tensor]:
    """For each layer [C], summing to 1: softmax of how much a classifier's loss rises without a channel, over `SOFTNESS`.

    The classifier is a logistic probe on the starting network's features of the same images, since the head is still random.
    Exact: for each channel, a forward pass of the images from its layer on. Changes nothing and draws nothing.

    Args:
        images: as the network is given them, [N, ...].
        targets: classes [N].
    """
    source = copy.deepcopy(model.net).eval().requires_grad_(False)
    heard = listen(source, {model.heads[0]: entering}, always=True)
    with torch.no_grad():
        classes = source(images).shape[1]
    weight, bias = _probe(pooled(heard.pop(model.heads[0])).float(), targets, classes)

    def loss() -> Tensor:
        with torch.no_grad():
            source(images)
        return functional.cross_entropy(pooled(heard.pop(model.heads[0])).float() @ weight.T + bias, targets)

    whole, found = loss(), []
    for layer, first in zip(layers, _channel_first(source, layers), strict=True):
        shape = outputs(model)[layer]
        size = shape[1 if first and len(shape) == 4 else -1]
        with ExitStack() as replay:
            replay.enter_context(replaying(source, layer))
            loss()
            if not torch.equal(loss(), whole):
                replay.close()  # every pass is a whole one
            rise = [_without(source.get_submodule(layer), channel, first, loss) - whole for channel in range(size)]
        found.append(torch.softmax(torch.stack(rise) / SOFTNESS, dim=0))
    return found


def layers(model: TransferModel, named: Sequence[str] | None) -> tuple[str, ...]:
    """The modules whose outputs are compared: the named ones, or up to `LAYERS` blocks spread evenly, the last among them.

    Raises:
        ConfigError: the network does not call one of them, or it does not return one tensor.
    """
    called = outputs(model)
    for name in named or ():
        if name not in called:
            raise ConfigError(
                f"regularizer.layers names {name}, but {type(model.net).__name__} calls no such module that returns one tensor"
                f"{nearest(name, called)}: choose blocks that `fourfold info` lists, or null"
            )
    if named:
        return tuple(named)
    blocks = [block.name for block in model.blocks if block.name in called]
    count = min(LAYERS, len(blocks))
    return tuple(blocks[math.ceil(len(blocks) * (i + 1) / count) - 1] for i in range(count))


def _distances(net: nn.Module, layers: Sequence[str]) -> Callable[[Any], list[Tensor]]:
    """A function of the inputs: for each layer [C], how far each channel is from the starting network's.

    Squared, mean over images and positions. The starting network is copied now, and stays in eval mode.
    """
    source = copy.deepcopy(net).eval().requires_grad_(False)
    seen = listen(source, dict.fromkeys(layers, leaving), always=True)
    heard = listen(net, dict.fromkeys(layers, leaving))
    channel_first = _channel_first(net, layers)

    def distances(inputs: Any) -> list[Tensor]:
        with torch.no_grad():
            source(inputs)
        pairs = [(heard.pop(layer).float(), seen.pop(layer).float()) for layer in layers]
        return [
            (ours - theirs).square().movedim(_axis(ours, first), -1).flatten(0, -2).mean(0)
            for (ours, theirs), first in zip(pairs, channel_first, strict=True)
        ]

    return distances


def _channel_first(net: nn.Module, layers: Sequence[str]) -> list[bool]:
    """Whether each layer puts out [N, C, H, W]: convolutions do, and transformers [N, T, C] or [N, H, W, C]."""
    return [any(isinstance(part, nn.Conv2d) for part in net.get_submodule(layer).modules()) for layer in layers]


def _axis(maps: Tensor, channel_first: bool) -> int:
    return 1 if channel_first and maps.ndim == 4 else -1


def _without(module: nn.Module, channel: int, first: bool, loss: Callable[[], Tensor]) -> Tensor:
    """The loss with one channel of what `module` puts out set to 0."""

    def remove(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept = output.clone()
        kept.select(_axis(kept, first), channel).zero_()
        return kept

    hook = module.register_forward_hook(remove)
    try:
        return loss()
    finally:
        hook.remove()


def _probe(features: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of a logistic regression, lightly shrunk: features may outnumber images."""
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, targets) + SHRINK / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call,arg-type,unused-ignore]
    return weight.detach(), bias.detach()
