"""The unit in which strategies freeze: an ordered partition of what is not the head."""

import pytest
import torch
from torch import nn

from fourfold.config import ConfigError
from fourfold.models import Block, blocks, create, describe


def test_micro_resnet_has_a_stem_and_three_stages(model_config) -> None:
    model = create(model_config("micro_resnet", "micro_resnet"), 10, pretrained=False)
    assert [block.name for block in model.blocks] == ["stem", "stage1", "stage2", "stage3"]
    assert model.heads == ("head",)
    assert 75_000 < sum(parameter.numel() for parameter in model.net.parameters()) < 85_000
    assert [row.output for row in describe(model)] == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4), (10,)]


def test_both_sources_cut_one_architecture_alike(model_config) -> None:
    ours, theirs = (
        create(model_config("resnet18", source, image_size=32), 4, pretrained=False) for source in ("torchvision", "timm")
    )
    assert ours.blocks == theirs.blocks
    assert [block.name for block in ours.blocks] == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))]
    assert ours.blocks[0].params == ("conv1.weight", "bn1.weight", "bn1.bias")


def test_hidden_classifier_layers_are_blocks() -> None:
    """Only the last Linear of a VGG is its head."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        names = [block.name for block in blocks.split(vgg16(init_weights=False), ("classifier.6",))]
    assert len(names) == 15
    assert names[-2:] == ["classifier.0", "classifier.3"]


@pytest.mark.parametrize(
    ("name", "source", "bare"),
    [("vit_b_32", "torchvision", ("class_token", "encoder.pos_embedding")), ("test_vit", "timm", ("cls_token", "pos_embed"))],
)
def test_tokens_and_positions_belong_to_the_embedding(name: str, source: str, bare: tuple[str, ...], model_config) -> None:
    model = create(model_config(name, source, image_size=32), 4, pretrained=False)
    assert set(bare) < set(model.blocks[0].params)
    assert model.blocks[-1].name.endswith(("encoder_layer_11", "blocks.5"))
    assert any("norm" in param or ".ln." in param for param in model.blocks[-1].params)  # the last norm, which has no block


class Residual(nn.Module):
    """Holds most of the parameters, but is one block: a shortcut is no nest of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 64, 1), nn.BatchNorm2d(64))


def test_a_large_block_with_a_shortcut_stays_whole() -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 4, 3))
    net.add_module("norm", nn.BatchNorm2d(4))
    net.add_module("large", Residual())
    net.add_module("head", nn.Linear(64, 2))
    parts = blocks.split(net, ("head",))
    assert [block.name for block in parts] == ["stem", "large"]
    assert parts[0] == Block("stem", ("stem.weight", "stem.bias", "norm.weight", "norm.bias"))


def test_a_head_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameters beside its head"):
        blocks.split(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ("1",))
