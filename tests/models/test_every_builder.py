"""Heads and blocks on every classification builder of torchvision and on every small test model of timm."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from fourfold.models import Block, blocks, create, heads, sources
from fourfold.models.trace import dummy_images

BUILDERS = torchvision.models.list_models(module=torchvision.models)


def nothing(*args: object, **kwargs: object) -> None:
    """Stands in for an initialisation, which no test here depends on."""


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch):
    """Build without memory and without arithmetic, so that models of 600 million parameters cost no more than small ones."""
    for layer in (nn.Linear, nn.modules.conv._ConvNd):
        monkeypatch.setattr(layer, "reset_parameters", nothing)
    for name in ("normal_", "trunc_normal_", "kaiming_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, nothing)

    def build(name: str) -> nn.Module:
        kwargs = {"init_weights": False} if name in sources.WITH_AUXILIARY_HEADS else {}
        if name.startswith("regnet"):  # does arithmetic with tensors in its constructor
            return torchvision.models.get_model(name, **kwargs).to("meta")
        with torch.device("meta"):
            net = torchvision.models.get_model(name, **kwargs)
        if name in sources.WITH_AUXILIARY_HEADS:
            sources._drop_auxiliary_heads(net)
        return net

    return build


def assert_partition(net: nn.Module, names: tuple[str, ...], parts: tuple[Block, ...]) -> None:
    """Every parameter lies in exactly one block or head, so each further block makes more of the network learn."""
    in_heads = [name for name, _ in net.named_parameters() if name.startswith(tuple(f"{head}." for head in names))]
    in_blocks = [name for block in parts for name in block.params]
    assert sorted(in_heads + in_blocks) == sorted(name for name, _ in net.named_parameters())
    assert in_heads
    assert all(block.params for block in parts)
    assert len({block.name for block in parts}) == len(parts) > 3


@pytest.mark.parametrize("name", BUILDERS)
def test_torchvision(name: str, on_meta) -> None:
    net = on_meta(name)
    images = dummy_images(net, 3, 299 if name == "inception_v3" else 224)
    names = (heads.find(net, images),)
    heads.replace(net, names[0], 7)
    heads.prove(net, names, 7, images)
    parts = blocks.split(net, names)
    assert_partition(net, names, parts)
    # Registration order is the order of computation: the first block holds the layer that sees the images.
    stem = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    assert f"{stem}.weight" in parts[0].params


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_timm(name: str, model_config) -> None:
    model = create(model_config(name, "timm"), 7, pretrained=False)
    assert_partition(model.net, model.heads, model.blocks)
    images = dummy_images(model.net, 3, model.preprocessing.size)
    assert model.net(images).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["alexnet", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf", "resnet18"]
)
def test_what_the_head_says_is_what_comes_out(name: str, model_config) -> None:
    """Independent of the gradient that `prove` follows: a head of zeros with bias b answers b for every image."""
    model = create(model_config(name, image_size=64), 3, pretrained=False)
    head = model.net.get_submodule(model.heads[0])
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        output = model.net.eval()(dummy_images(model.net, 3, 64))
    torch.testing.assert_close(output, torch.tensor([[1.0, 2.0, 3.0]] * 2))  # squeezenet averages over positions
