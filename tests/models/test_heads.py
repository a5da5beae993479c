"""A head is found by running the network, and one that the forward pass does not use is refused."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import vgg11

from fourfold.config import ConfigError
from fourfold.models import create, heads
from fourfold.models.trace import dummy_images


class Small(nn.Module):
    """An image classifier with a hidden layer as wide as its output, and a layer that is never called."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.hidden = nn.Linear(8, width)
        self.out = nn.Linear(width, width)
        self.fc = nn.Linear(8, width)

    def features(self, x: Tensor) -> Tensor:
        return self.hidden(self.conv(x).relu().mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class Ignored(Small):
    def forward(self, x: Tensor) -> Tensor:
        self.out(self.features(x))
        return self.features(x)


class Headless(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class Pair(Small):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


IMAGES = torch.zeros(2, 3, 16, 16)


def test_the_old_notebook_mistake_is_impossible() -> None:
    """Assigning `vgg.fc` trains a layer that the forward pass never uses."""
    with torch.device("meta"):
        net = vgg11(init_weights=False)
        net.fc = nn.Linear(4096, 7)
    images = dummy_images(net, 3, 224)
    with pytest.raises(ConfigError, match="1000 outputs, but the dataset needs 7"):
        heads.prove(net, ("fc",), 7, images)
    with pytest.raises(ConfigError, match="does not depend on its head fc"):
        heads.prove(net, ("fc",), 1000, images)
    assert heads.find(net, images) == "classifier.6"
    heads.replace(net, "classifier.6", 7)
    heads.prove(net, ("classifier.6",), 7, images)


def test_the_last_called_layer_wins() -> None:
    assert heads.find(Small(), IMAGES) == "out"


def test_a_head_whose_answer_is_thrown_away_is_refused() -> None:
    net = Ignored()
    with pytest.raises(ConfigError, match="does not depend on its head out"):
        heads.prove(net, ("out",), 5, IMAGES)


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head to replace"):
        heads.find(Headless(), IMAGES)


def test_a_network_that_answers_with_more_than_a_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="answers two images with tuple"):
        heads.find(Pair(), IMAGES)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_a_network_that_answers_with_probabilities_is_refused(outputs: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs), nn.Softmax(dim=1))
    if outputs == 1:  # of one output it may be meant
        assert heads.find(net, IMAGES) == "3"
        return
    with pytest.raises(
        ConfigError, match="answers with probabilities, which add up to 1, but losses take logits: leave the softmax"
    ):
        heads.find(net, IMAGES)


def test_looking_changes_nothing() -> None:
    net = Small()
    net.conv.eval()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    heads.find(net, IMAGES)
    heads.prove(net, ("out",), 5, IMAGES)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_same_seed_gives_the_same_model(model_config) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(create(model_config("resnet18", image_size=32), 4, pretrained=False).net.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_distilled_models_have_two_heads(model_config) -> None:
    config = model_config("deit_tiny_distilled_patch16_224", "timm", image_size=32, kwargs={"depth": 1})
    assert create(config, 4, pretrained=False).heads == ("head", "head_dist")


@pytest.mark.parametrize(
    ("name", "source"), [("resnet18", "torchvision"), ("test_resnet", "timm"), ("micro_resnet", "micro_resnet")]
)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_the_stem_takes_the_channels_that_come(name: str, source: str, in_chans: int, model_config) -> None:
    model = create(model_config(name, source, image_size=32), 4, in_chans=in_chans, pretrained=False)
    assert model.net(torch.zeros(2, in_chans, 32, 32)).shape == (2, 4)
    assert len(model.preprocessing.mean) == len(model.preprocessing.std) == in_chans


def test_one_channel_sees_what_three_equal_ones_saw(model_config) -> None:
    """Grey images through the adapted stem give what repeating them three times gave."""
    states = []
    for in_chans in (3, 1):
        torch.manual_seed(0)
        net = create(model_config("resnet18", image_size=32), 4, in_chans=in_chans, pretrained=False).net
        states.append(net.conv1)
    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        states[1](grey), states[0](grey.repeat(1, 3, 1, 1)), atol=1e-5, rtol=1e-5
    )  # summed in another order


def test_images_that_a_network_refuses_are_named(model_config) -> None:
    with pytest.raises(ConfigError, match="refuses images of 8 x 8 pixels and 3 channels"):
        create(model_config("inception_v3", image_size=8), 4, pretrained=False)


def test_what_a_network_keeps_of_its_weights_belongs_to_no_graph() -> None:
    """timm's efficientvit keeps its attention biases in eval mode, so two steps with a frozen backbone would share a graph."""
    net = timm.create_model("efficientvit_m0", num_classes=3)
    images = dummy_images(net, 3, 224)
    learning = [parameter.requires_grad for parameter in net.parameters()]
    heads.prove(net, ("head.linear",), 3, images)
    assert [parameter.requires_grad for parameter in net.parameters()] == learning
    net.requires_grad_(False).head.requires_grad_()
    for module in net.modules():
        module.training = False
    for _ in range(2):
        net(images).sum().backward()


def test_the_head_of_before_is_kept_where_it_is_asked_for(model_config, tmp_path) -> None:
    """Of a checkpoint it gives that network's own logits; without a checkpoint it is what the source's builder made."""
    torch.manual_seed(0)
    first = create(model_config("test_resnet", "timm"), 6).net.eval()
    torch.save(first.state_dict(), tmp_path / "first.pt")
    model = create(model_config("test_resnet", "timm", weights=str(tmp_path / "first.pt")), 3, source_head=True)
    images = torch.randn(2, 3, 64, 64)
    features: list[Tensor] = []
    model.net.eval().get_submodule(model.heads[0]).register_forward_pre_hook(lambda module, args: features.append(args[0]))
    assert model.net(images).shape == (2, 3)
    assert model.source_head is not None
    torch.testing.assert_close(model.source_head(features[0]), first(images))
    assert create(model_config("test_resnet", "timm"), 3).source_head is None
    for name, source, shape in (("resnet18", "torchvision", (1000, 512)), ("squeezenet1_1", "torchvision", (1000, 512, 1, 1))):
        made = create(model_config(name, source), 3, source_head=True).source_head
        assert made is not None
        assert made.weight.shape == shape
