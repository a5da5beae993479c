"""A frozen network answers the same with its batch norms folded in, and as it is where that cannot be."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fourfold.models.fusing import TOLERANCE, Fused

Net = TypeVar("Net", bound=nn.Module)
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many of their batch norms cannot be folded
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 0),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 0),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), 0),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False), 0),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=5), 62),  # those that come before a convolution
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=5), 0),  # it has none
    "timm efficientnet": (lambda: timm.create_model("efficientnet_lite0", num_classes=5), 0),
    "timm vit": (lambda: timm.create_model("test_vit", num_classes=5, img_size=64), 0),
}


class Calls(TorchFunctionMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def statistics(net: Net) -> Net:
    """As after training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    net.eval()
    return net


def norms(forward: Callable[[Tensor], Any], images: Tensor, fused: Fused) -> int:
    """How many the second answer takes; the first one finds the way."""
    fused(forward, images)
    with Calls() as calls:
        fused(forward, images)
    return calls.of[functional.batch_norm]


def same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_the_answer_is_the_network_s_own_without_its_norms(name: str) -> None:
    make, left = NETS[name]
    net, images, fused = statistics(make()), torch.randn(5, 3, 64, 64), Fused()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        expected = net(images)
    assert same(fused(net, images), expected)
    assert same(fused(net, images[3:]), expected[3:]), "of another batch"
    assert norms(net, images, fused) == left
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(images), expected), "the network itself is what it was"


class Two(nn.Module):
    """A convolution and its norm."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), way

    def forward(self, images: Tensor) -> Any:
        maps = self.conv(images)
        if self.way == "used twice":
            return self.norm(maps) + maps.relu()
        if self.way == "returned":
            return self.norm(maps), maps
        if self.way == "by keywords":
            norm = self.norm
            maps = torch.conv2d(input=images, weight=self.conv.weight, stride=2)
            return functional.batch_norm(
                input=maps, running_mean=norm.running_mean, running_var=norm.running_var, weight=norm.weight, bias=norm.bias
            )
        if self.way == "viewed" or (self.way == "sometimes viewed" and len(maps) == 3):
            return self.norm(maps).view(-1)
        if self.way == "short" and images.mean() > 1:
            return maps
        if self.way == "crossed":
            other = torch.conv2d(images, self.conv.weight)
            return self.norm(other if images.mean() > 1 else maps)
        if self.way == "rounded":
            return (1e9 * self.norm(maps)).sin()
        return self.norm(maps.relu() if self.way == "positive" and images.mean() > 1 else maps)


@pytest.mark.parametrize(
    ("way", "left"), [("plain", 0), ("by keywords", 0), ("used twice", 1), ("returned", 1), ("viewed", 1), ("rounded", 1)]
)
def test_only_what_is_sure_is_folded(way: str, left: int) -> None:
    net, images, fused = statistics(Two(way)), torch.randn(3, 3, 16, 16), Fused()
    with torch.no_grad():
        expected = net(images)
    found = fused(net, images)
    for a, b in zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, expected)), strict=True):
        assert same(a, b)
    assert norms(net, images, fused) == left


def test_statistics_of_a_batch_are_not_folded() -> None:
    net, images = statistics(Two("plain")), torch.randn(3, 3, 16, 16)
    net.norm.train()
    assert norms(net, images, Fused()) == 1
    net.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    assert norms(net, images, Fused()) == 1


@pytest.mark.parametrize(
    ("way", "size", "more"), [("positive", 3, 3), ("short", 3, 3), ("crossed", 3, 3), ("sometimes viewed", 4, 0)]
)
def test_a_batch_that_takes_another_way_is_answered_as_well(way: str, size: int, more: float) -> None:
    net, images, fused = statistics(Two(way)), torch.randn(size, 3, 16, 16), Fused()
    assert norms(net, images, fused) == 0
    with torch.no_grad():
        assert torch.equal(fused(net, images[:3] + more), net(images[:3] + more))
        assert torch.equal(fused(net, images), net(images)), "and so are those behind it"
