"""Images look as the weights' own metadata says, unless the configuration says otherwise."""

import pytest
import torchvision
from timm.data import resolve_model_data_config

from fourfold.config import ConfigError
from fourfold.models import Preprocessing, create

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_torchvision_weights_bring_their_own(model_config) -> None:
    found = create(model_config("mobilenet_v3_small"), 2, pretrained=False).preprocessing
    assert found == Preprocessing(224, 256, "bilinear", **IMAGENET)


def test_each_set_of_torchvision_weights_brings_its_own(model_config, tmp_path, monkeypatch) -> None:
    """ResNet-50's second set was trained for another resize than its first."""
    from torchvision.models import ResNet50_Weights

    state = torchvision.models.resnet50().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: state)
    sizes = {tag: create(model_config("resnet50", weights=tag), 2).preprocessing.resize for tag in ("IMAGENET1K_V1", "default")}
    assert ResNet50_Weights.DEFAULT is ResNet50_Weights.IMAGENET1K_V2
    assert sizes == {"IMAGENET1K_V1": 256, "default": 232}


def test_timm_models_bring_their_own(model_config) -> None:
    model = create(model_config("test_vit", "timm"), 2, pretrained=False)
    theirs = resolve_model_data_config(model.net)
    assert model.preprocessing.size == theirs["input_size"][1] == 160
    assert model.preprocessing.resize == int(160 / theirs["crop_pct"])
    assert model.preprocessing.mean == theirs["mean"] == (0.5, 0.5, 0.5)
    assert model.preprocessing.interpolation == theirs["interpolation"]


def test_micro_resnet(model_config) -> None:
    found = create(model_config("micro_resnet", "micro_resnet"), 2, pretrained=False).preprocessing
    assert (found.size, found.resize) == (32, 32)


def test_the_configuration_wins(model_config) -> None:
    changes = {"image_size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.5], "interpolation": "bicubic", "crop_pct": 0.8}
    found = create(model_config("resnet18", **changes), 2, pretrained=False).preprocessing
    assert found == Preprocessing(64, 80, "bicubic", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_another_size_keeps_the_share_of_the_image(model_config) -> None:
    found = create(model_config("resnet18", image_size=112), 2, pretrained=False).preprocessing
    assert found.resize == 128  # 224 of 256


@pytest.mark.parametrize(("name", "source"), [("vit_b_32", "torchvision"), ("test_vit", "timm"), ("test_vit_relpos", "timm")])
def test_transformers_take_another_size(name: str, source: str, model_config) -> None:
    model = create(model_config(name, source, image_size=64), 2, pretrained=False)
    assert model.preprocessing.size == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_pct": 1.5}, "model.crop_pct=1.5 is out of range"),
        ({"interpolation": "bicubik"}, "did you mean bicubic"),
        ({"mean": [0.5, 0.5]}, "has 2 numbers, but dataset.in_chans=3"),
        ({"std": [0.0]}, "divides by zero"),
        ({"image_size": -1}, "choose 1 or more"),
    ],
)
def test_impossible_images_are_refused(changes: dict, message: str, model_config) -> None:
    with pytest.raises(ConfigError, match=message):
        create(model_config("micro_resnet", "micro_resnet", **changes), 2, pretrained=False)
