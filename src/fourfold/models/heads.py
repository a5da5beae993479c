"""The head: the layer whose outputs are the network's outputs. It is found by running the network, never by its name."""

import torch
from torch import Tensor, nn

from fourfold.config import ConfigError
from fourfold.models.trace import evaluating, forward, trace


def find(net: nn.Module, images: Tensor) -> str:
    """Name of the last layer called on the way to the output that is as wide as the output.

    Args:
        images: a dummy batch, float32 [N, C, H, W].

    Raises:
        ConfigError: no such layer is called.
    """
    seen = trace(net, images)
    width = seen.output.shape[1]
    called = [name for name, _ in seen.calls if _head_width(net.get_submodule(name)) == width]
    if not called:
        raise ConfigError(
            f"no Linear or Conv2d layer with {width} outputs makes the model's output, so there is no head to replace: "
            "use a model that ends in one, or a builder of your own that accepts num_classes"
        )
    return called[-1]


def replace(net: nn.Module, name: str, num_outputs: int) -> None:
    """Put a new layer of `num_outputs` in the head's place. Changes `net`, draws torch's global generator; `prove` says whether
    the layer is used."""
    net.set_submodule(name, _resized(net.get_submodule(name), num_outputs))


def prove(net: nn.Module, heads: tuple[str, ...], num_outputs: int, images: Tensor) -> None:
    """Assert by a forward pass that the output is `num_outputs` wide and that training reaches it through every head.

    Raises:
        ConfigError: the width is wrong, or the output does not depend on what a head says.
    """
    for name in heads:
        output, said = _listen(net, name, images)
        if output.shape[1] != num_outputs:
            raise ConfigError(
                f"the model has {output.shape[1]} outputs, but the dataset needs {num_outputs}: "
                f"its head {name} does not decide the width, so use a builder that accepts num_classes"
            )
        if not any(_depends(output, part) for part in said):
            raise ConfigError(
                f"the model's output does not depend on its head {name}, which would train without effect: "
                "replace the layer that the forward pass uses"
            )


def _listen(net: nn.Module, name: str, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network's output, and what its module `name` said, cut from what came before as leaves of the graph."""
    said: list[Tensor] = []

    def cut(module: nn.Module, args: object, output: Tensor) -> Tensor:
        said.append(output.detach().requires_grad_())
        return said[-1].clone()  # a leaf may not be changed in place, as squeezenet's ReLU does

    hook = net.get_submodule(name).register_forward_hook(cut)
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.requires_grad_(False)  # timm's efficientvit keeps what it computes of its weights in eval mode, graph and all
    try:
        with evaluating(net), torch.enable_grad():
            return forward(net, images), said
    finally:
        hook.remove()
        for parameter in learning:
            parameter.requires_grad_()


def _depends(output: Tensor, part: Tensor) -> bool:
    return output.requires_grad and torch.autograd.grad(output.sum(), part, allow_unused=True, retain_graph=True)[0] is not None


def _head_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return module.out_channels
    return None


def _resized(head: nn.Module, num_outputs: int) -> nn.Module:
    if isinstance(head, nn.Linear):
        like = {"device": head.weight.device, "dtype": head.weight.dtype}
        return nn.Linear(head.in_features, num_outputs, bias=head.bias is not None, **like)
    assert isinstance(head, nn.Conv2d)
    return nn.Conv2d(
        head.in_channels,
        num_outputs,
        head.kernel_size,  # type: ignore[arg-type]
        stride=head.stride,  # type: ignore[arg-type]
        padding=head.padding,  # type: ignore[arg-type]
        dilation=head.dilation,  # type: ignore[arg-type]
        bias=head.bias is not None,
        padding_mode=head.padding_mode,
        device=head.weight.device,
        dtype=head.weight.dtype,
    )
