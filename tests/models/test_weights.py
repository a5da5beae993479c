"""A checkpoint fills the whole backbone, or says what it did not fill; the head is always new."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fourfold.config import ConfigError
from fourfold.models import create


@pytest.fixture
def saved(model_config) -> dict[str, torch.Tensor]:
    """The state of a trained network with five outputs."""
    torch.manual_seed(1)
    net = create(model_config("micro_resnet", "micro_resnet"), 5, pretrained=False).net
    net.norm.running_mean += 1
    return net.state_dict()


@pytest.fixture
def start_from(model_config):
    def start(file: Path, **changes):
        return create(model_config("micro_resnet", "micro_resnet", weights=str(file), **changes), 3)

    return start


def assert_backbone(net: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items() if not name.startswith("head."))


WRAPPED = {
    "plain": lambda state: state,
    "fourfold": lambda state: {"model": state, "ema": None, "state": {"epoch": 3}},
    "averaged": lambda state: {"model": {name: value * 0 for name, value in state.items()}, "ema": state},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_common_file_fills_the_backbone(kind: str, saved, start_from, tmp_path) -> None:
    torch.save(WRAPPED[kind](saved), tmp_path / "best.pt")
    model = start_from(tmp_path / "best.pt")
    assert_backbone(model.net, saved)
    assert model.net.head.out_features == 3
    assert model.weights.source == str(tmp_path / "best.pt")
    assert model.weights.dropped == ("head.weight", "head.bias")
    assert (model.weights.missing, model.weights.unexpected, model.weights.mismatched) == ((), (), ())


@pytest.mark.parametrize(("name", "source"), [("resnet18", "torchvision"), ("vit_tiny_patch16_224", "timm")])
def test_no_weights_are_drawn_that_a_file_replaces(name: str, source: str, model_config, tmp_path) -> None:
    """But the new head's, and those of a network that a file may fill in part."""
    begin = create(model_config(name, source), 3, pretrained=False).net
    torch.save(begin.state_dict(), tmp_path / "start.pt")
    asked = {"weights": str(tmp_path / "start.pt")}
    torch.manual_seed(5)
    made = create(model_config(name, source, **asked), 4)
    after = torch.rand(1)
    head = made.net.get_submodule(made.heads[0])
    assert all(
        torch.equal(value, begin.state_dict()[key]) for key, value in made.net.state_dict().items() if made.heads[0] not in key
    )
    assert head.weight.std() > 1e-3
    torch.manual_seed(5)
    again = create(model_config(name, source, **asked), 4)
    assert torch.equal(again.net.get_submodule(made.heads[0]).weight, head.weight)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(5)
    partly = create(model_config(name, source, **asked, partial_weights=True), 4)
    assert not torch.equal(partly.net.get_submodule(made.heads[0]).weight, head.weight), "drawn after all the others"
    assert torch.nn.init.kaiming_uniform_(torch.zeros(3, 3)).any(), "whose functions are back in their places"


def test_safetensors(saved, start_from, tmp_path) -> None:
    save_file({name: value.contiguous() for name, value in saved.items()}, tmp_path / "net.safetensors")
    assert_backbone(start_from(tmp_path / "net.safetensors").net, saved)


def test_the_head_is_new_even_where_it_would_fit(saved, model_config, tmp_path) -> None:
    """Five other classes are not these five classes."""
    torch.save(saved, tmp_path / "a.pt")
    model = create(model_config("micro_resnet", "micro_resnet", weights=str(tmp_path / "a.pt")), 5)
    assert not torch.equal(model.net.head.weight, saved["head.weight"])


def test_from_scratch_ignores_the_file(saved, model_config, tmp_path) -> None:
    torch.save(saved, tmp_path / "a.pt")
    config = model_config("micro_resnet", "micro_resnet", weights=str(tmp_path / "a.pt"))
    model = create(config, 3, pretrained=False)
    assert model.weights.source == "random"
    assert not torch.equal(model.net.stem.weight, saved["stem.weight"])


def test_a_backbone_that_is_not_filled_is_an_error_or_a_report(saved, start_from, tmp_path) -> None:
    del saved["stage1.conv1.weight"]
    saved["stage2.conv1.weight"] = torch.zeros(1)
    saved["extra"] = torch.zeros(1)
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(
        ConfigError, match=r"1 tensors are missing \(stage1.conv1.weight\) and 1 have another shape.*partial_weights=true"
    ):
        start_from(tmp_path / "a.pt")
    report = start_from(tmp_path / "a.pt", partial_weights=True).weights
    assert report.missing == ("stage1.conv1.weight",)
    assert report.mismatched == ("stage2.conv1.weight",)
    assert report.unexpected == ("extra",)


def test_lost_statistics_are_an_error(saved, start_from, tmp_path) -> None:
    """Batch norm without its statistics is another network."""
    torch.save({name: value for name, value in saved.items() if "running" not in name}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="18 tensors are missing"):
        start_from(tmp_path / "a.pt")


def test_a_checkpoint_of_another_network_is_always_an_error(model_config, start_from, tmp_path) -> None:
    other = create(model_config("test_vit", "timm"), 5, pretrained=False).net.state_dict()
    torch.save(other, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="fits nothing in the backbone"):
        start_from(tmp_path / "a.pt", partial_weights=True)


class Code:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_a_file_that_holds_code_is_refused(start_from, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Code()))
    for file in ("a.pt", "b.pt"):
        with pytest.raises(ConfigError, match="cannot be read as tensors alone"):
            start_from(tmp_path / file)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere/best.pt", "does not exist"),
        ("default", "micro_resnet brings no weights"),
        ("experiment:pretrain_embedded", "names an experiment"),
    ],
)
def test_weights_that_cannot_be_had(weights: str, message: str, model_config) -> None:
    with pytest.raises(ConfigError, match=message):
        create(model_config("micro_resnet", "micro_resnet", weights=weights), 3)


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_damaged_file_is_named(content: bytes, start_from, tmp_path) -> None:
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            start_from(tmp_path / name)


def test_a_file_without_tensors_is_named(start_from, tmp_path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="holds no tensors"):
        start_from(tmp_path / "a.pt")


@pytest.mark.parametrize(("name", "source"), [("resnet18", "torchvision"), ("test_vit", "timm"), ("googlenet", "torchvision")])
def test_a_run_of_any_source_starts_another(name: str, source: str, model_config, tmp_path) -> None:
    size = 32 if source == "torchvision" else None
    first = create(model_config(name, source, image_size=size), 5, pretrained=False)
    torch.save({"model": first.net.state_dict(), "ema": None}, tmp_path / "best.pt")
    second = create(model_config(name, source, image_size=size, weights=str(tmp_path / "best.pt")), 3)
    head = f"{second.heads[0]}."
    state = first.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in second.net.state_dict().items() if not key.startswith(head))
