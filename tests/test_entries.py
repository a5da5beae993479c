"""Entries are those of the state dict, each tensor once."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from fourfold.entries import entries, named


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "efficientnet_b0"])
def test_the_names_are_those_of_the_state_dict(name: str) -> None:
    with torch.device("meta"):
        net: nn.Module = torchvision.models.get_model(name)
    assert [*named(net)] == [*net.named_modules()]
    found = [*entries(net)]
    state = net.state_dict(keep_vars=True)
    assert [each.name for each in found] == [*state]
    assert all(each.tensor is state[each.name] for each in found)
    assert {each.name for each in found if not each.is_buffer} == {name for name, _ in net.named_parameters()}
    assert all(
        getattr(net.get_submodule(each.owner), each.key) is each.tensor is getattr(each.module, each.key) for each in found
    )


def test_what_is_shared_comes_once_and_what_no_state_dict_has_never() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight
            self.again = self.first
            self.register_buffer("kept", torch.zeros(1))
            self.register_buffer("passing", torch.zeros(1), persistent=False)
            self.register_buffer("absent", None)

    net = Tied()
    assert [*named(net)] == [*net.named_modules()]
    found: list[Any] = [each.name for each in entries(net)]
    assert found == ["kept", "first.weight", "first.bias"]
