"""Which images are chosen: stratified, seeded, disjoint, and the same whatever else a study varies."""

import heapq
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.config import ConfigError
from fourfold.data import load_splits
from fourfold.data.pools import Pool, Source
from fourfold.data.splits import choose, stratified_order

from .making import Preprocessing, dataset, source, transform


def counts(source: Source, indices: np.ndarray) -> list[int]:
    return torch.bincount(source.train.labels[indices], minlength=len(source.classes)).tolist()


def seats(sizes: list[int], count: int) -> list[int]:
    """The method of Huntington and Hill by its definition: each seat goes to the largest n / sqrt(r (r + 1))."""
    given = [0] * len(sizes)
    queue = [(-float("inf"), -n, i) for i, n in enumerate(sizes)]
    heapq.heapify(queue)
    for _ in range(count):
        _, size, i = heapq.heappop(queue)
        given[i] += 1
        heapq.heappush(queue, (size / np.sqrt(given[i] * (given[i] + 1)), size, i))
    return given


def test_every_prefix_of_the_order_is_stratified() -> None:
    sizes = [60, 30, 9, 1]
    strata = np.repeat(np.arange(4), sizes)
    order = stratified_order(strata, np.random.default_rng(3))
    assert sorted(order) == list(range(100))
    for count in range(4, 101):
        assert np.bincount(strata[order[:count]], minlength=4).tolist() == seats(sizes, count), count


def test_whole_quotas_are_met_exactly() -> None:
    data = source(200, 100, 20, test=5)
    chosen = choose(data, dataset(val_size=32, train_size=144), seed=1)
    assert counts(data, chosen.val) == [20, 10, 2]
    assert counts(data, chosen.train) == [90, 45, 9]


def test_a_larger_training_set_holds_the_smaller_one_and_the_same_validation_and_test() -> None:
    data = source(50, 40, 30)
    manifests = [choose(data, dataset(train_size=size), seed=5) for size in (3, 10, 31, 60)]
    for small, large in itertools.pairwise(manifests):
        assert set(small.train) < set(large.train)
        assert (small.val == large.val).all()
        assert (small.test == large.test).all()


def test_validation_and_test_are_cut_from_train_and_disjoint_from_it() -> None:
    data = source(40, 40)
    chosen = choose(data, dataset(), seed=0)
    assert (chosen.val_from, chosen.test_from) == ("train", "train")
    assert sorted([*chosen.train, *chosen.val, *chosen.test]) == list(range(80))
    assert (len(chosen.test), len(chosen.val)) == (20, 12)  # a quarter of 80, a fifth of the other 60


def test_folds_test_every_image_once_for_so_many_seeds() -> None:
    data = source(40, 20, 10)
    labels = data.train.labels.numpy()
    parts = [choose(data, dataset(folds=5, val_size=7), seed) for seed in range(10)]
    for start in (0, 5):  # the second time in other parts
        assert sorted(np.concatenate([part.test for part in parts[start : start + 5]]).tolist()) == list(range(70))
        for part in parts[start : start + 5]:
            assert np.bincount(labels[part.test]).tolist() == [8, 4, 2]
            assert len(part.val) == 7
            assert not {*part.test} & {*part.val, *part.train}
            assert len({*part.test, *part.val, *part.train}) == 70
    assert {*parts[0].test} != {*parts[5].test}
    again = choose(data, dataset(folds=5, val_size=7, split_seed=3), 3)
    assert again.hash == parts[3].hash


def test_folds_of_unequal_classes_differ_by_an_image_of_each_class() -> None:
    data = source(23, 9, 6)
    found = [np.bincount(data.train.labels[choose(data, dataset(folds=4), seed).test], minlength=3) for seed in range(4)]
    assert np.sum(found, axis=0).tolist() == [23, 9, 6]
    assert np.ptp(found, axis=0).tolist() == [1, 1, 1]
    assert np.ptp(np.sum(found, axis=1)) == 1


@pytest.mark.parametrize(
    ("data", "folds", "says"),
    [
        (source(6, 6, test=2), 3, "dataset=fake brings a test split: leave folds out"),
        (source(6, 6), 13, "dataset.folds=13 is more than the 12 images"),
        (source(6, 1), 2, "class c1 has 1 training image, too few to cut test images from"),
    ],
)
def test_folds_that_cannot_be_are_refused(data: Source, folds: int, says: str) -> None:
    config = dataset(folds=folds)
    with pytest.raises(ConfigError, match=says):
        list(map(partial(choose, data, config), range(folds)))


def test_official_splits_are_kept() -> None:
    chosen = choose(source(10, 10, val=3, test=4), dataset(), seed=0)
    assert (chosen.val_from, chosen.test_from) == ("val", "test")
    assert [len(chosen.train), len(chosen.val), len(chosen.test)] == [20, 6, 8]


def test_validation_never_comes_from_an_official_test_split() -> None:
    chosen = choose(source(10, 10, test=4), dataset(), seed=0)
    assert chosen.val_from == "train"
    assert not set(chosen.val) & set(chosen.train)
    assert len(chosen.val) + len(chosen.train) == 20


def test_caps_on_official_splits_are_stratified() -> None:
    data = source(10, 10, val=30, test=40)
    chosen = choose(data, dataset(val_size=8, test_size=12), seed=0)
    assert data.val is not None
    assert data.test is not None
    assert data.val.labels[chosen.val].bincount().tolist() == [4, 4]
    assert data.test.labels[chosen.test].bincount().tolist() == [6, 6]


def test_the_first_images_of_every_part_are_a_fair_sample() -> None:
    data = source(40, 40, val=10, test=10)
    chosen = choose(data, dataset(), seed=0)
    assert data.val is not None
    assert data.test is not None
    for pool, part in ((data.train, chosen.train), (data.val, chosen.val), (data.test, chosen.test)):
        assert pool.labels[part[:6]].bincount().tolist() == [3, 3]


def test_shots_are_exact_however_unequal_the_classes() -> None:
    data = source(100, 20, 9, test=2)
    assert counts(data, choose(data, dataset(shots=5), seed=0).train) == [5, 5, 5]


def test_a_fraction_is_a_share_of_the_training_images_after_the_cuts() -> None:
    data = source(50, 50, test=2)
    assert len(choose(data, dataset(fraction=0.5, val_size=20), seed=0).train) == 40


def test_the_choice_is_a_function_of_the_split_seed_alone() -> None:
    same = [
        load_splits(dataset(split_seed=7, train_size=12), transform(augmentation), Preprocessing(size, size), seed).manifest
        for augmentation, size, seed in (("none", 16, 0), ("randaugment", 24, 1))
    ]
    assert same[0].hash == same[1].hash
    assert same[0].train.tolist() == same[1].train.tolist()
    other = load_splits(dataset(split_seed=8, train_size=12), transform("none"), Preprocessing(), 0).manifest
    assert other.hash != same[0].hash


def test_the_split_follows_the_seed_where_it_has_none_of_its_own() -> None:
    by_seed = [load_splits(dataset(), transform("none"), Preprocessing(), seed).manifest.hash for seed in (3, 3, 4)]
    fixed = load_splits(dataset(split_seed=3), transform("none"), Preprocessing(), 9).manifest.hash
    assert by_seed[0] == by_seed[1] == fixed != by_seed[2]


def test_the_hash_knows_labels_and_name() -> None:
    data = source(10, 10, test=2)
    flipped = Source(Pool(data.train.images, 1 - data.train.labels), None, data.test, data.classes)
    hashes = {choose(data, dataset(), 0).hash, choose(flipped, dataset(), 0).hash, choose(data, dataset(name="x"), 0).hash}
    assert len(hashes) == 3


def test_a_saved_manifest_names_every_image(tmp_path: Path) -> None:
    chosen = choose(source(10, 10, test=2), dataset(), seed=0)
    chosen.save(tmp_path / "manifest.json")
    read = json.loads((tmp_path / "manifest.json").read_text())
    assert read["hash"] == chosen.hash
    assert read["val"] == {"from": "train", "indices": chosen.val.tolist()}
    assert read["test"]["from"] == "test"


def test_a_regression_target_is_spread_over_its_range() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).exp()
    data = Source(Pool(torch.zeros(200, 1, 2, 2, dtype=torch.uint8), values), None, None, ())
    chosen = choose(data, dataset(task="regression", test_fraction=0.1, val_size=20, train_size=20), seed=0)
    tenth = values.argsort().argsort() // 20  # of the ranking
    assert tenth[chosen.test].bincount().tolist() == [2] * 10
    for part in (chosen.val, chosen.train):
        assert (tenth[part].bincount(minlength=10) - 2).abs().max() <= 1


def test_several_labels_are_balanced_by_the_rarest() -> None:
    labels = torch.zeros(120, 3)
    labels[:, 0] = 1
    labels[:40, 1] = 1
    labels[:12, 2] = 1
    data = Source(Pool(torch.zeros(120, 1, 2, 2, dtype=torch.uint8), labels), None, None, ("a", "b", "c"))
    chosen = choose(data, dataset(task="multilabel", test_fraction=0.25, val_size=30), seed=0)
    assert labels[chosen.test].sum(0).tolist() == [30, 10, 3]
    assert labels[chosen.val].sum(0).tolist() == [30, 10, 3]


@pytest.mark.parametrize(
    ("sizes", "changes", "says"),
    [
        ((30, 6), {"shots": 6}, r"shots=6, but class c1 has \d training images .* choose \d or fewer"),
        ((30, 30, 30), {"train_size": 2}, "train_size=2 gives 2 training images for 3 classes"),
        ((30, 30), {"fraction": 0.01}, "fraction=0.01 gives 0 training images for 2 classes"),
        ((30, 30), {"train_size": 500}, "train_size=500, but only 38 training images"),
        ((30, 1), {}, "class c1 has 1 training image, too few to cut test images from"),
        ((30, 2), {}, "class c1 has 1 training image, too few to cut validation images from"),
        ((30, 30), {"val_size": 60}, r"60 validation images cannot be cut from the 45 of train: .*dataset.val_size"),
    ],
)
def test_too_few_images_are_refused_in_one_sentence(sizes: tuple[int, ...], changes: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(source(*sizes), dataset(**{"test_fraction": 0.25, "val_fraction": 0.15} | changes), seed=0)
