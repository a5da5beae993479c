"""The two parts of a cut network are the network: its logits, its training step for step; where they cannot be, it says so."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold import freeze, models
from fourfold.compose import compose
from fourfold.config import ModelConfig
from fourfold.models import TransferModel
from fourfold.models.frontier import NoFrontier, split
from fourfold.models.fusing import Fused

CONF = Path(__file__).parents[2] / "conf"
BASE = yaml.safe_load((CONF / "config.yaml").read_text())

# `make test-exhaustive` tries every builder of torchvision and the smallest architecture of every family of timm, as it
# takes minutes; each run of the tests tries these, one for each kind of trouble.
QUICK = {
    "torchvision": (
        "densenet121",
        "mobilenet_v3_small",
        "resnet18",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
    ),
    "timm": (
        "levit_128s",
        "test_convnext",
        "test_nfnet",
        "test_vit",
        "test_vit_relpos",
        "xcit_nano_12_p8_224",
    ),
}
FAMILIES = """
beit_base_patch16_224 halonet_h1 mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext
cpubone_nano cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
test_mambaout maxvit_pico_rw_256 poolformerv2_s12 gmlp_ti16_224 lcnet_035 mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny
regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit
vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905 - one name a line would take a page
REFUSED = {"hiera_tiny_224": "takes a mask"}
SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 28}


def cases() -> list:
    """(source, name, blocks that learn beside the head)."""
    known = {"torchvision": torchvision.models.list_models(module=torchvision.models), "timm": FAMILIES}
    return [
        pytest.param(source, name, blocks, marks=[] if name in QUICK[source] else pytest.mark.exhaustive, id=f"{name}-{blocks}")
        for source, names in known.items()
        for name in names
        for blocks in (0, 1)
    ]


def build(source: str, name: str, size: int | None = None, **kwargs) -> TransferModel:
    torch.manual_seed(0)
    values = {**BASE["model"], "source": source, "name": name, "weights": None, "image_size": size, "kwargs": kwargs}
    return models.create(ModelConfig(**values), 7)


def smallest(source: str, name: str) -> TransferModel:
    """The model for the smallest images that it takes, as far as that can be asked of it."""
    if source == "torchvision":
        return build(source, name, SIZES.get(name, 32 if name.startswith("vit_") else 64))
    for size in (64, 128):
        try:
            return build(source, name, size)
        except Exception:  # each has its own way of saying that its windows do not fit
            continue
    return build(source, name)


def hold(model: TransferModel, blocks: int, norm_stats: str = "follow") -> TransferModel:
    """The model with its head and its last blocks learning, and the rest held as a strategy holds it."""
    kept = {name for block in model.blocks[: len(model.blocks) - blocks] for name in block.params}
    names = {name for name, _ in model.net.named_parameters()}
    freeze.apply(model.net, freeze.Phase(0, frozenset(names - kept)), norm_stats)
    model.net.train()
    return model


def noise(n: int, size: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits(net: nn.Module, *inputs: Tensor, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return net(*inputs).detach()


@pytest.mark.parametrize(("source", "name", "blocks"), cases())
def test_equal_logits(source: str, name: str, blocks: int, record_property) -> None:
    """On images that `split` has not seen, to the bit; fused, as a CPU runs the prefix, to the rounding of folded numbers."""
    model = hold(smallest(source, name), blocks)
    side = model.preprocessing.size
    if name in REFUSED:
        with pytest.raises(NoFrontier, match=REFUSED[name]):
            split(model.net, noise(3, side))
        return
    found = split(model.net, noise(3, side))
    record_property("cut", f"{found.name}, {found.deviation}")
    images = noise(2, side, seed=2)
    activations = found.prefix(images)
    fused = Fused()
    fused(found.prefix, noise(4, side, seed=3))
    for a, b in zip(fused(found.prefix, images), activations, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    with torch.no_grad():
        model.net.eval()
        assert torch.equal(found.suffix(*activations), model.net(images))
        model.net.train()
        state = copy.deepcopy(model.net.state_dict())
        want = logits(model.net, images)
        model.net.load_state_dict(state)
        assert torch.equal(logits(found.suffix, *activations), want)
    assert found.deviation == 0.0


@pytest.mark.parametrize(
    ("source", "name", "size", "blocks", "kwargs"),
    [
        ("torchvision", "resnet18", 64, 2, {}),  # layer4
        ("torchvision", "densenet121", 64, 1, {}),
        pytest.param("torchvision", "vgg16", 32, 1, {}, marks=pytest.mark.exhaustive),  # dropout
        ("torchvision", "swin_t", 64, 1, {}),  # stochastic depth
        ("timm", "test_vit", None, 2, {"drop_rate": 0.2, "proj_drop_rate": 0.1, "drop_path_rate": 0.3}),
        ("micro_resnet", "micro_resnet", None, 1, {}),
        ("micro_resnet", "micro_resnet", None, 0, {}),
    ],
)
def test_equal_training(source: str, name: str, size: int | None, blocks: int, kwargs: dict) -> None:
    """Losses, weights and statistics of four steps are those of the uncut network, to the bit."""
    model = hold(build(source, name, size, **kwargs), blocks)
    uncut = copy.deepcopy(model.net)
    start = copy.deepcopy(model.net.state_dict())
    side = model.preprocessing.size
    found = split(model.net, noise(2, side))
    batches = [noise(4, side, seed) for seed in range(4)]
    activations = [found.prefix(images) for images in batches]

    want = train(uncut, uncut, [(images,) for images in batches])
    assert train(found.suffix, model.net, activations) == want
    after = model.net.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in uncut.state_dict().items())
    assert any(not torch.equal(value, start[key]) for key, value in after.items()), "nothing has learned"


def train(net: nn.Module, owner: nn.Module, batches: list[tuple[Tensor, ...]]) -> list[float]:
    torch.manual_seed(5)
    optimizer = torch.optim.SGD([p for p in owner.parameters() if p.requires_grad], lr=0.01, momentum=0.9, weight_decay=0.1)
    losses = []
    for inputs in batches:
        net.train()
        loss = F.cross_entropy(net(*inputs), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def test_nothing_is_left_behind() -> None:
    model = hold(build("torchvision", "resnet18", 64), 1)
    model.net.layer4[0].eval()
    before = copy.deepcopy(model.net.state_dict())
    modes = [module.training for module in model.net.modules()]
    entries = [set(module.__dict__) for module in model.net.modules()]
    state = torch.get_rng_state()
    found = split(model.net, noise(2, 64))
    found.prefix(noise(2, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    assert [module.training for module in model.net.modules()] == modes
    found.suffix(*found.prefix(noise(2, 64)))
    assert [set(module.__dict__) for module in model.net.modules()] == entries
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.net.modules())
    assert all(parameter.grad is None for parameter in model.net.parameters())


def test_the_suffix_has_the_networks_own_parameters_and_modes() -> None:
    model = hold(build("micro_resnet", "micro_resnet"), 1)
    suffix = split(model.net, noise(2, 32)).suffix
    assert [id(p) for p in suffix.parameters()] == [id(p) for p in model.net.parameters()]
    suffix.train()
    assert model.net.stage3.bn1.training
    assert not model.net.stage2.bn1.training  # held by its strategy
    suffix.eval()
    assert not model.net.stage3.bn1.training


def test_the_moving_average_has_a_suffix_of_its_own() -> None:
    model = hold(build("micro_resnet", "micro_resnet"), 1)
    found = split(model.net, noise(2, 32))
    average = ModelEmaV3(model.net, decay=0.5)
    train(found.suffix, model.net, [found.prefix(noise(4, 32))])
    average.update(found.suffix)
    images = noise(3, 32)
    got = found.suffix_of(average.module).eval()(*found.prefix(images))
    assert torch.equal(got, average.module.eval()(images))
    assert not torch.equal(got, found.suffix.eval()(*found.prefix(images)))


def test_an_activation_is_stored_as_it_was_and_stays_so() -> None:
    """What learns behind the cut changes its input in place."""
    net = Chain(nn.Conv2d(3, 4, 3), InPlace(), learns="1")
    images = noise(3, 8)
    found = split(net, images)
    (activation,) = found.prefix(images)
    assert torch.equal(activation, net[0](images))
    for _ in range(2):
        assert torch.equal(found.suffix(activation), net(images))
    assert torch.equal(activation, net[0](images))


def test_the_memory_layout_is_restored() -> None:
    """A store may hand out contiguous tensors; a convolution's last digits depend on the layout."""
    model = hold(build("torchvision", "resnet18", 64), 2)
    model.net.to(memory_format=torch.channels_last)
    images = noise(4, 64).to(memory_format=torch.channels_last)
    found = split(model.net, images)
    (activation,) = found.prefix(images)
    assert activation.is_contiguous(memory_format=torch.channels_last)
    model.net.eval()
    assert torch.equal(found.suffix(activation.contiguous()), model.net(images))


def test_under_autocast_the_networks_own_type_is_kept() -> None:
    model = hold(build("torchvision", "resnet18", 64), 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = split(model.net, noise(3, 64))
        activations = found.prefix(noise(3, 64))
        assert [activation.dtype for activation in activations] == [torch.bfloat16]
        model.net.eval()
        assert torch.equal(found.suffix(*activations), model.net(noise(3, 64)))


# --- Networks of one's own ----------------------------------------------------------------------------------------------------


class Chain(nn.Sequential):
    """Layers in a row, a mean over positions at the end; only the named part learns."""

    def __init__(self, *layers: nn.Module, learns: str) -> None:
        torch.manual_seed(0)
        for layer in layers:
            for module in layer.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        super().__init__(*layers)
        learn_only(self, learns)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((2, 3))


def learn_only(net: nn.Module, part: str) -> nn.Module:
    names = frozenset(name for name, _ in net.named_parameters() if name.startswith(part))
    assert names
    freeze.apply(net, freeze.Phase(0, names), "follow")
    return net.train()


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x *= self.scale
        return x.relu_()


class Around(nn.Module):
    """The images themselves are added behind what learns, and a frozen branch too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.side = nn.Conv2d(3, 3, 1)
        self.body = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return (self.body(x) * self.side(x) + images + x).mean((2, 3))


class Tucked(nn.Module):
    """A skip connection that no call shows: a frozen module keeps a value, which is used later."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Keeping()
        self.body = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return (self.body(self.stem(images)) * self.stem.kept).mean((2, 3))


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        return self.b(self.kept)


class Twice(nn.Module):
    """One frozen module on both sides of what learns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.shared(self.body(self.shared(self.stem(images)))).mean((2, 3))


class Bare(nn.Module):
    """Parameters and a class token that no module owns: the scale learns, the token and the positions are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.scale = nn.Parameter(torch.rand(8))
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT  # [N, 8, 2, 2] -> [N, 4, 8]
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
        return self.mix(x)[:, 0] * self.scale


class Ladder(nn.Module):
    """Branches that part and meet a hundred times: more paths than anybody can walk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.rand(4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for _ in range(100):
            x = (x.relu() + x.sigmoid()) / 2
        return x.mean((2, 3)) * self.scale


class Sequence(nn.Module):
    """Activations whose first dimension is not the images'."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.mix, self.last = nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerEncoderLayer(8, 2, 16)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).permute(2, 0, 1)  # [4, N, 8]
        return self.last(self.mix(x)).mean(0)


class Tied(nn.Module):
    """A weight that learns is used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.last.weight = self.middle.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.middle(self.first(images))).mean((2, 3))


class Named(nn.Module):
    """Modules that take and return dictionaries and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Pyramid(), Fusion()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(maps=self.stem(images), weights=[1.0, 2.0])


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"fine": fine, "coarse": self.coarse(fine)}


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, maps: dict[str, Tensor], weights: list[float]) -> Tensor:
        parts = [self.conv(part).mean((2, 3)) * weight for part, weight in zip(maps.values(), weights, strict=True)]
        return torch.stack(parts).sum(0)


@pytest.mark.parametrize(
    ("make", "learns", "name", "slots"),
    [
        (Around, "body", "before body and after side and before the network", 3),
        (Ladder, "scale", "after stem", 1),
        (Tucked, "body", "before body and after stem.a", 2),
        (Twice, "body", "before body", 1),
        (Bare, "scale", "after mix", 1),
        (Bare, "mix", "before mix", 1),
        (Sequence, "last", "after patches", 1),
        (Tied, "middle", "before middle", 1),
        (Named, "body", "before body", 2),
    ],
)
def test_networks_of_ones_own(make: type[nn.Module], learns: str, name: str, slots: int) -> None:
    torch.manual_seed(0)
    net = learn_only(make(), learns)
    found = split(net, noise(3, 8))
    assert (set(found.name.split(" and ")), len(found.cut.slots)) == (set(name.split(" and ")), slots)
    images = noise(5, 8, seed=2)
    activations = found.prefix(images)
    for mode in (True, False):
        net.train(mode)
        torch.testing.assert_close(logits(found.suffix, *activations), logits(net, images), rtol=0, atol=0)
    assert [len(activation) for activation in activations] == [5] * slots


def test_the_whole_and_its_parts_answer_in_eval_mode_whatever_mode_they_are_in() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Sequential(nn.Dropout(0.5), nn.Linear(144, 5)))
    found = split(learn_only(net, "2.1"), noise(3, 8))
    assert found.cut.head == "2"
    net.train()
    images = noise(5, 8, seed=2)
    activations, whole, parts = found.whole(images)
    assert net[2][0].training
    assert torch.equal(whole, parts)
    assert torch.equal(whole, net.eval()(images))
    assert torch.equal(activations[0], found.prefix(images)[0])


class Odd(nn.Module):
    """A frozen layer, something odd, and a layer that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.odd(self.stem(images))).mean((2, 3))

    def odd(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Looking(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class Mixing(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class OwnDice(Odd):
    def odd(self, x: Tensor) -> Tensor:
        return x * torch.rand(1, generator=self.generator)


class Masked(Odd):
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(images)

    def odd(self, x: Tensor) -> Tensor:
        return x


class Statistics(nn.Module):
    """A batch norm that keeps no statistics normalises with those of each batch, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            nn.Conv2d(4, 4, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images)).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Looking, "cannot be followed without values"),
        (Mixing, "mixes the images of a batch"),
        (Statistics, "mixes the images of a batch"),
        (OwnDice, "does not repeat itself"),
        (Masked, "takes a mask"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(make: type[nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    net = learn_only(make(), "body")
    with pytest.raises(NoFrontier, match=reason) as refused:
        split(net, noise(3, 8))
    assert "\n" not in str(refused.value)


class Dropping(nn.Module):
    """Dropout that no mode turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, training=True)


def test_random_numbers_are_drawn_behind_the_frontier() -> None:
    """A frozen layer that draws them is not in the prefix, nor is what follows it."""
    net = Chain(nn.Conv2d(3, 4, 3), Dropping(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), learns="3")
    found = split(net, noise(3, 8))
    assert found.name == "after 1.conv"
    activations = found.prefix(noise(3, 8))
    assert torch.equal(logits(found.suffix, *activations), logits(net, noise(3, 8)))
    assert not torch.equal(logits(net, noise(3, 8)), logits(net, noise(3, 8), seed=4))
    with pytest.raises(NoFrontier, match="no frozen layer"):
        split(Chain(nn.Dropout2d(), nn.Conv2d(3, 4, 3), learns="1"), noise(3, 8))


def test_moving_statistics_are_behind_the_frontier() -> None:
    """Frozen weights do not make a frozen layer: these statistics follow the data."""
    net = Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), learns="2")
    assert split(net, noise(3, 8)).name == "before 2"
    for module in net.modules():
        module.__dict__.pop("train", None)
    assert split(net, noise(3, 8)).name == "before 1"


STRATEGIES = sorted(  # a run with adapters never asks: they learn from the first layer on
    path.stem for path in (CONF / "freeze_strategy").glob("*.yaml") if "adapter:" not in path.read_text()
)
FRONTIERS = {
    "bias_only": ["before norm"],
    "classifier_only": ["before head"],
    "embedding_frozen": ["before stage1"],
    "from_scratch": [None],
    "full": [None],
    "gradual": ["before head", "before stage3", "before stage2", "before stage1", None],
    "last_blocks": ["before stage3"],
    "layer_decay": [None],
    "lp_ft": ["before head", None],
    "norm_only": ["before norm"],
    "two_rate": [None],
    "stochnorm": [None],
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_frontier_of_every_phase_of_every_strategy(name: str) -> None:
    config = compose([f"freeze={name}"]).freeze_strategy
    model = models.adapt(build("micro_resnet", "micro_resnet"), config)
    plan = freeze.plan(model, config, 6)
    seen: list[str | None] = []
    for phase in plan.phases:
        freeze.apply(model.net, phase, plan.norm_stats)
        seen.append(name_of(model.net))
    assert seen == FRONTIERS[name]


def name_of(net: nn.Module) -> str | None:
    try:
        return split(net, noise(2, 32)).name
    except NoFrontier as reason:
        if "no frozen layer" not in str(reason):
            raise
        return None
