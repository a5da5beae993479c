"""The places that models come from: tags, names, folders, the user's own functions, and what is said when one fails."""

import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from fourfold.config import ConfigError
from fourfold.models import create

HUBCONF = """
from torch import nn

def tiny(pretrained=False, width=4):
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))
    if pretrained:
        nn.init.constant_(net[0].weight, 0.5)
    return net
"""

OWN = """
import torch
from torch import nn

def net(outputs, chans=3):
    return nn.Sequential(nn.Conv2d(chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))

def fixed(width=9):
    return net(width)

def sized(num_classes, in_chans, pretrained):
    made = net(num_classes, in_chans)
    nn.init.constant_(made[0].weight, float(pretrained))
    return made

def outputs(num_outputs):
    return net(num_outputs)

def words():
    return "no module"
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_torchvision_weights_reach_the_network(model_config, monkeypatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    asked = []
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **kwargs: asked.append(url) or state)
    model = create(model_config("resnet18", weights="default"), 4)
    assert torch.equal(model.net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert model.weights.source == "torchvision resnet18.IMAGENET1K_V1"
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]


def test_a_download_that_fails_is_one_sentence(model_config, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ConfigError, match=r"of resnet18 cannot be fetched from PyTorch's server.*model.weights=PATH") as caught:
        create(model_config("resnet18", weights="default"), 4)
    assert "\n" not in str(caught.value)


def test_a_timm_download_that_fails_is_one_sentence(model_config) -> None:
    with pytest.raises(ConfigError, match=r"test_resnet.r160_in1k cannot be fetched .*model.weights=PATH") as caught:
        create(model_config("test_resnet", "timm", weights="r160_in1k"), 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "source", "weights", "message"),
    [
        ("resnet81", "torchvision", None, "not a classification model of torchvision, did you mean resnet18"),
        ("test_resnet", "torchvision", None, "model=timm has it"),
        ("fcn_resnet50", "torchvision", None, "not a classification model"),
        ("test_resnett", "timm", None, "not a model of timm, did you mean test_resnet"),
        ("resnet18", "torchvision", "IMAGENET1K_V3", "did you mean IMAGENET1K_V1"),
        (
            "test_resnet",
            "timm",
            "in1k",
            "not one of test_resnet's r160_in1k, default, null, or the path of a file, did you mean r160_in1k",
        ),
        ("test_resnet.r160_in1k", "timm", "other", "name two sets of weights"),
        ("test_vit4", "timm", "in22k", "timm has no weights for model.name=test_vit4"),
        ("owner/net", "hf_hub", "v2", "has one set of weights"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, source, weights, message, model_config) -> None:
    with pytest.raises(ConfigError, match=message):
        create(model_config(name, source, weights=weights), 4)


def test_arguments_that_a_builder_does_not_take(model_config) -> None:
    with pytest.raises(ConfigError, match=r"resnet18 cannot be built with model.kwargs=\{'widht': 2\}"):
        create(model_config("resnet18", kwargs={"widht": 2}), 4)


def test_a_local_torch_hub_folder(model_config, tmp_path) -> None:
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    config = model_config(
        "tiny", "torch_hub", repo=str(tmp_path), trust=True, weights="default", image_size=16, kwargs={"width": 6}
    )
    model = create(config, 4)
    assert model.net[0].weight.unique().tolist() == [0.5]
    assert model.net[0].out_channels == 6
    assert model.heads == ("3",)
    assert create(config, 4, pretrained=False).net[0].weight.unique().numel() > 1


def test_a_function_of_ones_own_is_told_what_it_asks_for(own: str, model_config) -> None:
    config = model_config("mine", "target", _target_=f"{own}.sized", weights="default", image_size=16)
    model = create(config, 4, in_chans=2)
    assert model.net[3].out_features == 4
    assert model.net[0].weight.unique().tolist() == [1.0]
    assert model.weights.source == f"{own}.sized"
    assert create(config, 4, in_chans=2, source_head=True).source_head is None  # its layer for 4 outputs is as new as any
    assert create(config, 4, in_chans=2, pretrained=False).net[0].weight.unique().tolist() == [0.0]


@pytest.mark.parametrize(("function", "kwargs"), [("outputs", {}), ("fixed", {}), ("fixed", {"width": 6})])
def test_the_head_of_ones_own_model_is_made_to_fit(function: str, kwargs: dict, own: str, model_config) -> None:
    model = create(model_config("mine", "target", _target_=f"{own}.{function}", kwargs=kwargs, image_size=16), 4)
    assert model.net(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert model.heads == ("3",)
    assert [block.name for block in model.blocks] == ["0"]


def test_weights_that_cannot_be_taken_away_are_no_control(own: str, model_config) -> None:
    """from_scratch needs random weights, and a builder without `pretrained` might have loaded some."""
    config = model_config("mine", "target", _target_=f"{own}.fixed", weights="default")
    with pytest.raises(ConfigError, match="has no parameter `pretrained`"):
        create(config, 4, pretrained=False)


def test_what_is_no_module_is_refused(own: str, model_config) -> None:
    with pytest.raises(ConfigError, match="gave a str"):
        create(model_config("mine", "target", _target_=f"{own}.words"), 4)


def test_inceptions_find_the_same_network_with_and_without_weights(model_config, monkeypatch) -> None:
    """Their pretrained weights expect inputs in [-1, 1]; a checkpoint of a run on them does too."""
    state = torchvision.models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: state)
    nets = [create(model_config("googlenet", weights=weights, image_size=64), 4).net for weights in ("default", None)]
    assert nets[0].transform_input == nets[1].transform_input == True  # noqa: E712
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    assert not any("aux" in name for name in nets[0].state_dict())


def test_a_transformer_with_weights_takes_another_size(model_config, monkeypatch) -> None:
    state = torchvision.models.vit_b_32().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: state)
    net = create(model_config("vit_b_32", weights="default", image_size=64), 4).net
    assert net.encoder.pos_embedding.shape[1] == 1 + 2 * 2
    assert torch.equal(net.conv_proj.weight, state["conv_proj.weight"])


def test_a_hub_folder_that_is_not_there(model_config, tmp_path: Path) -> None:
    config = model_config("tiny", "torch_hub", repo=str(tmp_path), trust=True)
    with pytest.raises(ConfigError, match=r"tiny of .* cannot be fetched"):
        create(config, 4)


def test_every_module_of_the_network_is_a_torch_module(own: str, model_config) -> None:
    model = create(model_config("mine", "target", _target_=f"{own}.fixed", image_size=16), 4)
    assert isinstance(model.net, nn.Module)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_network_whose_first_convolution_sees_rearranged_pixels(in_chans: int, model_config) -> None:
    """timm's TResNet folds 4 x 4 pixels into channels, and is told by timm how many there are."""
    model = create(model_config("tresnet_m", "timm", image_size=64), 3, in_chans=in_chans, pretrained=False)
    assert model.net(torch.zeros(2, in_chans, 64, 64)).shape == (2, 3)
