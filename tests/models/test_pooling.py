"""Max pooling by oneDNN gives PyTorch's own numbers."""

import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch.nn import functional

from fourfold.models.pooling import FastPooling

KERNELS = ((2, None), (3, 2), ((3, 2), (2, 1)), (3, 3))


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of oneDNN's pooling."""
    calls: list[Any] = []
    own = torch.mkldnn_max_pool2d
    monkeypatch.setattr(torch, "mkldnn_max_pool2d", lambda *args: calls.append(args) or own(*args))
    return calls


def equal(images: torch.Tensor, *how: Any, **named: Any) -> None:
    asked = functional.max_pool2d(images, *how, **named)
    with FastPooling():
        found = functional.max_pool2d(images, *how, **named)
    assert torch.equal(asked.isnan(), found.isnan())
    assert torch.equal(asked.nan_to_num(), found.nan_to_num())
    assert found.is_contiguous() == asked.is_contiguous()


@pytest.mark.parametrize(("kernel", "padding", "ceil"), [*itertools.product(KERNELS, (0, 1), (False, True))])
def test_the_numbers_are_those_of_pytorch(kernel: Any, padding: int, ceil: bool, pooled: list[Any]) -> None:
    images = torch.randn(3, 5, 33, 30)
    equal(images, *kernel, padding, ceil_mode=ceil)
    equal(images[2:], *kernel, padding, ceil_mode=ceil)
    assert len(pooled) == 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_what_it_is(value: float) -> None:
    images = torch.randn(2, 3, 16, 16)
    images[0, 1, 4, 4] = value
    images[1, 2] = value
    equal(images, 3, 2, 1)


def test_other_images_are_left_to_pytorch(pooled: list[Any]) -> None:
    images = torch.randn(2, 4, 16, 16)
    equal(images, 3, dilation=2)
    equal(images.double(), 3)
    equal(images.to(memory_format=torch.channels_last), 3)
    equal(images[0], 3)
    equal(images[..., ::2], 2)
    with FastPooling():
        values, places = functional.max_pool2d(images, 2, return_indices=True)
        functional.max_pool1d(images[0], 2)
        assert not pooled
        assert torch.equal(functional.max_pool2d(input=images, kernel_size=2), values)
    assert places.dtype == torch.int64


def test_a_network_answers_the_same(pooled: list[Any]) -> None:
    net = torchvision.models.squeezenet1_1().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        asked = net(images)
        with FastPooling():
            assert torch.equal(net(images), asked)
    assert len(pooled) == 3
