"""The loop against a naive one, and what it promises of every step."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fourfold import losses, metrics
from fourfold.config import LossConfig
from fourfold.loop import Kit, NonFiniteLoss, evaluate, kernels_tried, train_one_epoch
from fourfold.ranks import Ranks
from fourfold.state import State

G = torch.Generator().manual_seed(0)
IMAGES = torch.randn(22, 3, 4, 4, generator=G)
CLASSES = torch.randint(0, 5, (22,), generator=G)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 5))


def kit(**changes) -> Kit:
    loss = losses.create(LossConfig("auto", 0.0, "none", 2.0), "classification")
    values = {
        "ranks": Ranks(0, 1, torch.device("cpu")), "task": "classification", "loss": loss, "eval_loss": loss,
        "prepare": lambda images, *mask: images, "mix": None, "autocast": None, "clip_norm": None, "channels_last": False,
        "scaler": torch.amp.GradScaler("cpu", enabled=False), "takes_mask": False,
    }  # fmt: skip
    return Kit(**{**values, **changes})


def batches(size: int, parts: int = 1) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    steps = zip(IMAGES.split(size), CLASSES.split(size), strict=True)
    return [list(zip(images.chunk(parts), classes.chunk(parts), strict=True)) for images, classes in steps]


def train(net: nn.Module, steps: list, the_kit: Kit, lr: float = 0.1, **changes) -> tuple[State, bool]:
    state = State()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    options = {
        "images_in": lambda step: sum(len(targets) for _, targets in steps[step]), "set_rate": lambda step: lr, "ema": None,
        "should_stop": lambda: False, "on_step": lambda loss, rate: None,
    }  # fmt: skip
    whole = train_one_epoch(net, steps, the_kit, optimizer, state, **{**options, **changes})
    return state, whole


def test_it_equals_a_naive_loop_bit_for_bit() -> None:
    naive = network()
    optimizer = torch.optim.SGD(naive.parameters(), lr=0.1, momentum=0.9)
    naive.train()
    torch.manual_seed(2)
    total = 0.0
    for images, classes in zip(IMAGES.split(8), CLASSES.split(8), strict=True):
        loss = functional.cross_entropy(naive(images), classes, reduction="none").sum() / len(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(images)
    ours = network()
    torch.manual_seed(2)
    state, whole = train(ours, batches(8), kit())
    assert whole
    assert (state.step, state.images, state.loss_sum) == (3, 22, total)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), naive.parameters(), strict=True))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, split = network(), network()
    whole[3].p = split[3].p = 0.0
    a, _ = train(whole, batches(8), kit(clip_norm=0.5))
    b, _ = train(split, batches(8, parts=4), kit(clip_norm=0.5))
    assert b.loss_sum == pytest.approx(a.loss_sum, rel=1e-6)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(p, q)  # sums in another order


def test_clipping_bounds_the_step() -> None:
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]
    train(net, batches(22), kit(clip_norm=0.01), lr=1.0)
    moved = math.sqrt(sum(float(((p - q) ** 2).sum().detach()) for p, q in zip(net.parameters(), before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_names_epoch_step_and_rate() -> None:
    def poisoned(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum(1) * (math.nan if len(targets) == 6 else 1.0)  # the last batch

    with pytest.raises(NonFiniteLoss, match=r"the loss is nan at epoch 0, step 2, with a learning rate of 0\.1"):
        train(network(), batches(8), kit(loss=poisoned))


def test_a_loss_that_never_was_finite_is_no_matter_of_the_rate() -> None:
    with pytest.raises(NonFiniteLoss, match="the loss is nan before anything was learned: an image, a target or a weight"):
        train(network(), batches(8), kit(loss=lambda outputs, targets: outputs.sum(1) * math.nan))


def test_a_wish_to_stop_is_granted_after_the_step() -> None:
    state, whole = train(network(), batches(8), kit(), should_stop=lambda: True)
    assert not whole
    assert (state.step, state.step_in_epoch, state.images) == (1, 1, 8)


def test_evaluation_sees_every_image_once_and_changes_nothing() -> None:
    net = network()
    net.train()
    before = torch.get_rng_state()
    values = evaluate(net, batches(8), kit(), metrics.create("classification", 5))
    with torch.no_grad():
        outputs = net.eval()(IMAGES)
    assert values["loss"] == pytest.approx(functional.cross_entropy(outputs, CLASSES).item(), rel=1e-6)
    assert values["acc"] == pytest.approx((outputs.argmax(1) == CLASSES).float().mean().item())
    assert sum(map(sum, values["confusion"])) == 22
    assert torch.equal(before, torch.get_rng_state())


def test_a_mask_reaches_only_a_network_that_takes_one() -> None:
    class Masked(nn.Module):
        def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return images.new_zeros(len(images), 5) + mask.sum()

    steps = [[(IMAGES, CLASSES, torch.ones(22, 4, 4))]]
    assert evaluate(Masked(), steps, kit(takes_mask=True), metrics.create("classification", 5))["loss"] > 0
    assert evaluate(network(), steps, kit(), metrics.create("classification", 5))["loss"] > 0


def test_metrics_that_are_measured_of_several_batches_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which is not waited for after every batch."""
    net = network()
    at_once = evaluate(net, batches(4), kit(), metrics.create("classification", 5))
    monkeypatch.setattr("fourfold.loop._check_every", lambda kit: 4)
    assert evaluate(net, batches(4), kit(), metrics.create("classification", 5)) == at_once


def test_a_gpu_that_is_seldom_looked_at_stops_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.loop._check_every", lambda kit: 50)
    asked = iter([False, True])
    state, whole = train(network(), batches(8), kit(), should_stop=lambda: next(asked))
    assert (whole, state.step, state.images) == (False, 2, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_pinned_batches_travel_beside_and_arrive_whole() -> None:
    device = torch.device("cuda", 0)
    steps = [[tuple(part.pin_memory() for part in batch) for batch in step] for step in batches(8)]
    on_gpu, on_cpu = network().to(device), network()
    on_gpu[3].p = on_cpu[3].p = 0.0
    there, _ = train(on_gpu, steps, kit(ranks=Ranks(0, 1, device), scaler=torch.amp.GradScaler("cuda", enabled=False)))
    here, _ = train(on_cpu, steps, kit())
    assert there.loss_sum == pytest.approx(here.loss_sum, rel=1e-4)


def test_kernels_are_tried_inside_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with kernels_tried():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    try:
        with kernels_tried():
            assert not torch.backends.cudnn.benchmark, "the fastest kernel may be another one each time"
    finally:
        torch.use_deterministic_algorithms(False)
