"""The same batches, whatever the number of workers, the step to begin at, or the number of processes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.config import ConfigError, LoaderConfig
from fourfold.data import Batches, class_weights, load_splits
from fourfold.data.batches import Batch, collated

from .making import FAKE, LOADER, Preprocessing, Shapes, dataset, transform


def images(count: int = 50, augmentation: str = "trivialaugment", classes: int = 4) -> Any:
    kwargs = FAKE | {"size": count + 4, "num_classes": classes}
    config = dataset(kwargs=kwargs, val_size=4)
    return load_splits(config, transform(augmentation, hflip=True), Preprocessing(), seed=0).train


def batches(data: Any, loader: dict[str, Any] | None = None, **changes: Any) -> Batches:
    given: dict[str, Any] = {"batch_size": 16, "accumulate": 1, "seed": 3, "shuffle": True} | changes
    return Batches(data, loader=LoaderConfig(**(vars(LOADER) | (loader or {}))), **given)


def flat(steps: list[list[Batch]]) -> list[Tensor]:
    return [part for step in steps for batch in step for part in batch]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_no_pixel(persistent: bool) -> None:
    data = images()
    alone = batches(data)
    helped = batches(data, {"num_workers": 2, "persistent_workers": persistent})
    for epoch in (0, 1):
        assert equal(flat(list(alone.at(epoch))), flat(list(helped.at(epoch))))


def test_workers_that_were_left_in_the_middle_of_an_epoch_begin_the_next_one_rightly() -> None:
    data = images()
    helped = batches(data, {"num_workers": 2, "persistent_workers": True}, batch_size=4)
    next(iter(helped.at(0)))
    assert equal(flat(list(helped.at(1))), flat(list(batches(data, batch_size=4).at(1))))


def test_beginning_later_is_the_rest_of_the_same_epoch() -> None:
    data = images()
    whole = list(batches(data).at(2))
    assert equal(flat(whole[2:]), flat(list(batches(data).at(2, start_step=2))))
    assert equal(flat(whole[1:3]), flat(list(batches(data).at(2, start_step=1, stop_step=3))))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_of_a_single_one(world: int) -> None:
    data = images(51)
    single = list(batches(data).at(1))
    shares = [list(batches(data, rank=rank, world=world, accumulate=2).at(1)) for rank in range(world)]
    for step, [(inputs, targets)] in enumerate(single):
        for rank in range(world):
            parts = shares[rank][step]
            assert torch.equal(torch.cat([part[0] for part in parts]), inputs[rank::world])
            assert torch.equal(torch.cat([part[1] for part in parts]), targets[rank::world])


def test_order_and_augmentation_change_with_epoch_and_seed() -> None:
    data = images(augmentation="standard")
    orders = {tuple(batches(data, seed=seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    ordered = [batches(data, {"sampler": "sequential"}, seed=seed) for seed in (0, 0, 1)]
    pixels = [flat(list(each.at(epoch)))[0] for each in ordered for epoch in (0, 1)]
    assert torch.equal(pixels[0], pixels[2])
    assert torch.equal(pixels[1], pixels[3])
    assert not torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[4])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_rng_is_as_before(workers: int) -> None:
    before = torch.get_rng_state()
    list(batches(images(), {"num_workers": workers}).at(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("count", "changes", "sizes"),
    [
        (50, {}, [16, 16, 16, 2]),
        (49, {}, [16, 16, 16]),  # batch norm cannot work with one image
        (51, {"world": 4}, [16, 16, 16]),  # nor a process with none
        (50, {"loader": {"drop_last": True}}, [16, 16, 16]),
        (49, {"shuffle": False}, [16, 16, 16, 1]),  # an evaluation leaves nothing out
        (49, {"shuffle": False, "loader": {"drop_last": True}}, [16, 16, 16, 1]),
    ],
)
def test_what_becomes_of_the_last_step(count: int, changes: dict[str, Any], sizes: list[int]) -> None:
    data = images(count, "none")
    world = changes.get("world", 1)
    steps = list(zip(*(batches(data, rank=rank, **changes).at(0) for rank in range(world)), strict=True))
    assert [sum(len(batch[0]) for share in step for batch in share) for step in steps] == sizes
    several = batches(data, **changes)
    assert len(several) == len(sizes)
    assert [several.images_in(step) for step in range(len(several))] == sizes


def test_an_evaluation_over_processes_loses_no_image() -> None:
    data = images(49, "none")
    seen = [0, 0]
    for rank in range(2):
        for share in batches(data, shuffle=False, rank=rank, world=2).at(0):
            seen[rank] += sum(len(batch[0]) for batch in share)
    assert seen == [25, 24]


@pytest.mark.parametrize(
    ("size", "accumulate", "sizes"), [(16, 4, [4, 4, 4, 4]), (16, 2, [8, 8]), (16, 16, [1] * 16), (5, 2, [3, 2])]
)
def test_micro_batches_divide_a_step(size: int, accumulate: int, sizes: list[int]) -> None:
    first = next(batches(images(), batch_size=size, accumulate=accumulate).at(0))
    assert [len(batch[0]) for batch in first] == sizes


def test_no_micro_batch_of_a_remainder_has_one_image() -> None:
    for count in range(18, 32):
        last = list(batches(images(count, "none"), batch_size=16, accumulate=8).at(0))[-1]
        assert sum(len(batch[0]) for batch in last) == count - 16
        assert min(len(batch[0]) for batch in last) >= 2


def test_the_weighted_sampler_balances_classes() -> None:
    data = Shapes([(2, 2)] * 1000)
    data.labels = torch.tensor([0] * 950 + [1] * 50)  # type: ignore[attr-defined]
    drawn = torch.tensor(batches(data, {"sampler": "weighted"}).order(0))
    share = data.labels[drawn].float().mean().item()  # type: ignore[attr-defined]
    assert abs(share - 0.5) < 4 * 0.5 / 1000**0.5  # four standard deviations
    assert batches(data, {"sampler": "weighted"}).order(1) != drawn.tolist()


def test_given_weights_are_followed() -> None:
    order = batches(Shapes([(2, 2)] * 40), {"sampler": "weighted"}, weights=[0.0] * 20 + [1.0] * 20).order(0)
    assert min(order) >= 20


def test_the_subset_sampler_sees_its_positions_only() -> None:
    chosen = batches(images(), {"sampler": "subset", "subset": [3, 9, 4, 30]}, batch_size=2)
    assert [sorted(chosen.order(epoch)) for epoch in (0, 1)] == [[3, 4, 9, 30]] * 2
    assert len(chosen) == 2


def test_the_sequential_sampler_keeps_the_order_of_the_manifest() -> None:
    assert batches(images(), {"sampler": "sequential"}).order(4) == list(range(50))


@pytest.mark.parametrize("sampler", ["sequential", "weighted", "subset"])
def test_an_evaluation_follows_no_sampler(sampler: str) -> None:
    loader = {"sampler": sampler, "subset": [1] if sampler == "subset" else None}
    assert batches(images(), loader, shuffle=False).order(0) == list(range(50))


def test_padding_is_zero_and_the_mask_says_where_the_image_is() -> None:
    [[(inputs, targets, mask)]] = batches(
        Shapes([(3, 5), (4, 2)]), {"collate": "pad", "sampler": "sequential"}, batch_size=2
    ).at(0)
    assert inputs.shape == (2, 3, 4, 5)
    assert mask.dtype == torch.bool
    assert mask.sum((1, 2)).tolist() == [15, 8]
    assert (inputs * ~mask[:, None]).sum() == 0
    assert inputs[1][:, :4, :2].unique().tolist() == [2]
    assert targets.tolist() == [0, 1]


def test_whole_images_of_any_shape_fill_the_model_s_square() -> None:
    """Padded to the model's size, not to the largest of the batch: the result of an image is its own affair."""
    config = dataset({"collate": "pad"})
    data = load_splits(config, transform("none"), Preprocessing(), seed=0).train
    data.images = Shapes([(20, 10)] * 40)  # type: ignore[attr-defined]
    sample = data.prepare(torch.zeros(3, 20, 10, dtype=torch.uint8))  # type: ignore[attr-defined]
    assert sample.shape == (3, 16, 8)
    inputs, _, mask = collated([(sample, torch.tensor(0))], "pad", size=16)
    assert inputs.shape == (1, 3, 16, 16)
    assert mask.float().mean() == 0.5


def test_resizing_brings_all_to_one_shape() -> None:
    loader = {"collate": "resize", "sampler": "sequential"}
    [[(inputs, _)]] = batches(Shapes([(3, 5), (4, 2)]), loader, batch_size=2).at(0)
    assert inputs.shape == (2, 3, 4, 5)
    assert [image.unique().tolist() for image in inputs] == [[1], [2]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_its_sentence_also_from_a_worker(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"^dataset.loader.collate=stack cannot put .* choose .*pad or resize$"):
        list(batches(Shapes([(3, 5), (4, 2)]), {"num_workers": workers}, batch_size=2).at(0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: batches(images(20, "none"), {"drop_last": True}, batch_size=32), "20 training images make no step"),
        (lambda: batches(images(), {"sampler": "subset", "subset": [0, 50]}), r"position 50, but .* choose 0 to 49"),
        (lambda: batches(Shapes([(2, 2)] * 9), {"sampler": "weighted"}), "sampler=weighted balances classes"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make: Callable[[], Batches], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_images_in_memory_are_read_a_batch_at_a_time_and_equal_those_read_one_by_one() -> None:
    config = dataset(name="glyph_digits", source="generated", kwargs={"seed": 0, "train": 4, "test": 2}, val_size=10)
    fast = load_splits(config, transform("none"), Preprocessing(32, 32), seed=0).train
    assert hasattr(fast, "take")
    whole = list(batches(fast).at(0))
    single = list(batches([fast[i] for i in range(len(fast))]).at(0))  # type: ignore[arg-type, index]
    assert equal(flat(whole), flat(single))


def test_class_weights_balance_and_keep_the_mean() -> None:
    counts = [60, 30, 10]
    weights = class_weights(counts)
    assert torch.allclose(weights * torch.tensor(counts), torch.full((3,), 100 / 3))
    assert (weights * torch.tensor(counts)).sum() / 100 == pytest.approx(1)
    assert class_weights([5, 0]).tolist() == [1, 0]
