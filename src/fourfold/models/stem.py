"""The first convolution, made to take the number of channels that the images have."""

from torch import nn

from fourfold.config import ConfigError
from fourfold.zoo import adapt_input_conv


def adapt(net: nn.Module, in_chans: int) -> None:
    """Make `net` take `in_chans` channels, in place, by summing (1) or repeating (others) its weights for three.

    A network that already takes them is left as it is. Draws torch's global generator otherwise.

    Raises:
        ConfigError: the first convolution takes neither three channels nor `in_chans`.
    """
    name, conv = next(((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), ("", None))
    if conv is None or conv.in_channels == in_chans:
        return
    if conv.in_channels != 3 or conv.groups != 1:
        raise ConfigError(
            f"dataset.in_chans={in_chans}, but the model's first convolution {name} takes {conv.in_channels} channels: "
            f"set dataset.in_chans={conv.in_channels}"
        )
    new = nn.Conv2d(
        in_chans,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    new.weight.data = adapt_input_conv(in_chans, conv.weight.data)
    if conv.bias is not None:
        new.bias = conv.bias
    net.set_submodule(name, new)
