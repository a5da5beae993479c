"""Training on stored activations gives the numbers of the whole network, and says so where it cannot."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from fourfold import features
from fourfold.activations import Near, NoRoom, Part, Store
from fourfold.assembly import assemble
from fourfold.compose import compose
from fourfold.data import pools
from fourfold.loop import ready
from fourfold.models import frontier
from fourfold.models.fusing import Fused
from fourfold.ranks import Ranks
from fourfold.run import run
from fourfold.seeding import seed_everything
from fourfold.stock import Stock

TINY = [
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=3", "dataset.val_size=20", "dataset.test_size=10",
    "model=micro_resnet", "trainer.batch_size=8", "trainer.epochs=4", "trainer.device=cpu", "trainer.threads=1",
    "trainer.progress=false", "logger=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "start-0123456789ab"
    run(compose([*TINY, "freeze=from_scratch", "trainer.epochs=1"]), folder)
    return folder / "best.pt"


def trained(folder: Path, weights: Path, *words: str) -> tuple[list[tuple[float, float]], dict[str, Any], dict[str, Any]]:
    """Losses of every epoch, the result, and the last weights."""
    config = compose([*TINY, f"model.weights={weights}", f"paths.cache={folder.parent / 'cache'}", *words])
    result = run(config, folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = torch.load(folder / "last.pt", weights_only=True)["model"]
    return [(row["train/loss"], row["val/loss"]) for row in rows], result, state


@pytest.mark.parametrize(
    "words",
    [
        ("freeze=last_blocks", "trainer.ema_decay=0.9"),
        ("freeze=gradual",),
        ("freeze=lp_ft", "trainer.accumulate=2"),
        ("freeze=norm_only", "freeze_strategy.norm_stats=frozen"),
        ("freeze=classifier_only", "trainer.precision=bf16"),
        ("freeze=last_blocks", "trainer.channels_last=true"),
        ("freeze=last_blocks", "trainer.channels_last=true", "trainer.precision=bf16"),
    ],
    ids=" ".join,
)
def test_the_numbers_are_those_of_the_whole_network(words: tuple[str, ...], weights: Path, tmp_path: Path) -> None:
    """To the bit where layers are not fused: the same kernels see the same values, in batches of the same size behind the
    frontier."""
    whole, *_ = whole_and_exact(tmp_path, weights, *words)
    stores = {*(tmp_path / "cache/activations").iterdir()}
    usual, *_ = trained(tmp_path / "usual", weights, *words)
    assert usual == whole
    assert {*(tmp_path / "cache/activations").iterdir()} == stores


@pytest.mark.parametrize("more", [(), ("transform=light",)], ids=["stored", "augmented"])
def test_what_a_head_alone_learns_from_is_fused_and_its_numbers_are_the_same_but_for_rounding(
    more: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    words = ("freeze=classifier_only", "trainer.epochs=8", *more)
    whole, plain, state = whole_and_exact(tmp_path, weights, *words)
    stores = {*(tmp_path / "cache/activations").iterdir()}
    fused, result, again = trained(tmp_path / "fused", weights, *words)
    assert fused != whole
    assert close(fused, whole)
    assert result["metrics"]["test"] == pytest.approx(plain["metrics"]["test"], rel=1e-5)
    assert all(torch.allclose(state[name], again[name], atol=1e-5) for name in state)
    assert {*(tmp_path / "cache/activations").iterdir()} > stores, "others do not read what was rounded"


def whole_and_exact(folder: Path, weights: Path, *words: str) -> tuple[Any, Any, Any]:
    """`trained` of the whole network; on stored activations, with `trainer.deterministic`, it is the same to the bit."""
    whole, plain, state = trained(folder / "whole", weights, *words, "cache.activations=off")
    cached, result, again = trained(folder / "exact", weights, *words, "trainer.deterministic=true")
    assert cached == whole
    assert result["metrics"]["test"] == plain["metrics"]["test"]
    assert all(torch.equal(state[name], again[name]) for name in state)
    return whole, plain, state


def close(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    """Losses of runs whose prefixes are rounded otherwise."""
    return bool(np.allclose(found, expected, rtol=1e-5, atol=0))


def test_the_frozen_prefix_is_fused_for_a_head_alone_unless_all_shall_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    own = Fused.__call__
    monkeypatch.setattr(Fused, "__call__", lambda self, way, images: asked.append(len(images)) or own(self, way, images))
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18-0123abcd.pt")
    words = ("model=resnet18", "model.image_size=32", "freeze=classifier_only", "trainer.epochs=1")
    trained(tmp_path / "exact", tmp_path / "resnet18-0123abcd.pt", *words, "trainer.deterministic=true")
    trained(tmp_path / "blocks", tmp_path / "resnet18-0123abcd.pt", *words, "freeze=last_blocks")
    assert not asked
    trained(tmp_path / "fused", tmp_path / "resnet18-0123abcd.pt", *words)
    assert asked == [20, 30], "validation and training images"
    asked.clear()
    trained(tmp_path / "augmented", tmp_path / "resnet18-0123abcd.pt", *words, "transform=light", "trainer.epochs=2")
    assert asked[-8:] == [8, 8, 8, 6] * 2, "the batches of both epochs"


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("debug=overfit", "trainer.epochs=3"), [8]),
        (("debug=smoke", "trainer.epochs=1", "trainer.batch_size=4", "trainer.eval_batch_size=3"), [6, 8]),
        (("trainer.limit_train_batches=1", "trainer.eval_batch_size=15", "trainer.limit_eval_batches=1"), [15, 23]),
        (("dataset.loader.sampler=subset", "dataset.loader.subset=[3,1,7]", "freeze=last_blocks"), [20, 3]),
    ],
    ids=lambda each: " ".join(map(str, each)),
)
def test_what_a_run_does_not_show_is_not_stored(
    words: tuple[str, ...], rows: list[int], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 images to train on, of which 4 epochs of 8 show 23, and 20 to validate; a run that learns one batch by heart is asked
    for that batch."""
    filled: list[int] = []
    own = Store.fill
    monkeypatch.setattr(
        Store, "fill", lambda self, keys, *more, **how: filled.append(len(keys)) or own(self, keys, *more, **how)
    )
    whole_and_exact(tmp_path, weights, "freeze=classifier_only", *words)
    assert filled == rows


def test_of_the_test_images_no_more_are_stored_than_the_runs_of_a_sweep_show(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    own = Store.fill
    monkeypatch.setattr(
        Store, "fill", lambda self, keys, *more, **how: filled.append(len(keys)) or own(self, keys, *more, **how)
    )
    words = [f"model.weights={weights}", f"paths.cache={tmp_path / 'cache'}", "freeze=classifier_only", "debug=smoke"]
    shared, smoke = Stock(), [*TINY, *words, "trainer.epochs=1", "trainer.eval_batch_size=3"]
    results = [run(compose([*smoke, f"optimizer.lr={lr}"]), tmp_path / lr, shared=shared) for lr in ("0.1", "0.2")]
    assert filled == [6, 16, 6]
    alone = run(compose([*smoke, "optimizer.lr=0.2", "cache.activations=off"]), tmp_path / "alone")
    assert results[1]["metrics"]["test"] == pytest.approx(alone["metrics"]["test"], rel=1e-5)


def test_the_frontier_follows_the_phases(weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fourfold.features")
    trained(tmp_path / "run", weights, "freeze=gradual", "trainer.epochs=5")
    places = [line.split("ends ")[1].split(",")[0] for line in caplog.messages if "ends " in line]
    assert places[0] == "before head"
    assert len(set(places)) == len(places) > 1


def test_runs_share_what_is_stored(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    fill = Store.fill
    monkeypatch.setattr(Store, "fill", lambda *given, **named: computed.append(fill(*given, **named)) or computed[-1])
    trained(tmp_path / "a", weights, "freeze=classifier_only")
    trained(tmp_path / "b", weights, "freeze=classifier_only", "optimizer.lr=0.5", "trainer.loss.label_smoothing=0.1")
    assert computed == [20, 30, 0]  # validation, training into the same store; of the second run nothing
    trained(tmp_path / "c", weights, "freeze=classifier_only", "model.image_size=24")
    assert computed[3:] == [20, 30]


def test_images_that_an_earlier_run_has_decoded_are_not_decoded_for_the_frozen_prefix(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        path = tmp_path / f"photos/class{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 4 * i, np.uint8)).save(path)
    read: list[Path] = []
    truly = pools.read_image
    monkeypatch.setattr(pools, "read_image", lambda path: read.append(path) or truly(path))
    photos = [word for word in TINY if not word.startswith("dataset")]
    photos += ["dataset=image_folder", f"dataset.root={tmp_path}/photos", f"paths.cache={tmp_path}/cache"]
    run(compose([*photos, "freeze=full", "model.weights=null"]), tmp_path / "full")
    assert {path.name for path in read} == {f"{i}.png" for i in range(60)}
    read.clear()
    run(compose([*photos, "freeze=last_blocks", f"model.weights={weights}"]), tmp_path / "last")
    assert len(read) < 30, "of each split a few, to try the cut and to see whether they are still what was decoded"


@pytest.mark.parametrize(
    ("collate", "sizes", "says"),
    [
        ("stack", [(40, 40), (50, 30)], "the frozen prefix ends before head"),
        ("resize", [(40, 40), (50, 30)], "the frozen prefix ends before head"),
        ("pad", [(40, 40), (50, 30)], "every epoch runs the whole network: its images come with a mask"),
        ("pad", [(50, 30)], "every epoch runs the whole network: its images come with a mask"),  # each of them alike
    ],
)
def test_images_of_other_shapes_than_the_square_are_batched_as_in_training(
    collate: str, sizes: list[tuple[int, int]], says: str, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dice = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / f"photos/class{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (*sizes[i % 3 % len(sizes)], 3), np.uint8)).save(path)
    photos = [word for word in TINY if not word.startswith("dataset")]
    photos += ["dataset=image_folder", f"dataset.root={tmp_path}/photos", f"paths.cache={tmp_path}/cache"]
    photos += ["freeze=classifier_only", f"model.weights={weights}", f"dataset.loader.collate={collate}"]
    whole = run(compose([*photos, "cache.activations=off"]), tmp_path / "whole")
    with caplog.at_level(logging.INFO):
        cached = run(compose(photos), tmp_path / "cached")
    assert says in caplog.text
    assert cached["metrics"]["test"] == pytest.approx(whole["metrics"]["test"], rel=1e-4)
    assert cached["metrics"]["train"] == pytest.approx(whole["metrics"]["train"], rel=1e-4)


@pytest.mark.parametrize("room", [10**9, 3000, 100])
def test_rows_lie_on_the_gpu_where_they_leave_it_most_of_its_memory(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, known = torch.device("cuda"), features.Known()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room, room))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(features, "Near", lambda store, device: Near(store, torch.device("cpu")))
    stores = {}
    for name in ("a", "b"):
        stores[name] = Store(tmp_path / name, [Part((100,), torch.float32)], 10**6)
        stores[name].fill(np.array([0]), lambda keys: iter([(keys, (torch.ones(1, 100),))]))
    found = [features._near(stores[name], name, known, gpu) for name in ("a", "b", "a")]
    assert features._near(stores["a"], "a", known, torch.device("cpu")) is stores["a"]
    if room == 100:
        assert found == [stores["a"], stores["b"], stores["a"]]
    elif room == 3000:  # a fourth of which holds one of them
        assert [near.store for near in found] == [stores["a"], stores["b"], stores["a"]]  # type: ignore[union-attr]
        assert found[0] is not found[2]
        assert list(known.near) == ["a"]
    else:
        assert found[0] is found[2]
        assert list(known.near) == ["b", "a"]
        stores["a"].fill(np.array([1]), lambda keys: iter([(keys, (torch.ones(1, 100),))]))
        assert len(features._near(stores["a"], "a", known, gpu)) == 2


def test_augmented_images_are_computed_anew_unless_views_are_asked_for(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fourfold.features")
    words = ("freeze=classifier_only", "transform=light")
    whole, *_ = trained(tmp_path / "whole", weights, *words, "cache.activations=off")
    cached, *_ = trained(tmp_path / "cached", weights, *words)
    assert close(cached, whole)
    assert "the training images change from epoch to epoch" in caplog.text
    viewed, result, _ = trained(tmp_path / "viewed", weights, *words, "cache.views=2")
    assert viewed != whole
    assert result["run_id"] != json.loads((tmp_path / "cached/result.json").read_text())["run_id"]


def test_each_epoch_shows_the_next_view(weights: Path, tmp_path: Path) -> None:
    words = [*TINY, f"model.weights={weights}", "freeze=classifier_only", "transform=light", "cache.views=3"]
    config = compose([*words, f"paths.cache={tmp_path}"])
    seed_everything(0, False)
    parts = assemble(config, tmp_path / "run", Ranks(0, 1, torch.device("cpu")))
    parts.enter_phase()
    assert parts.stored is not None
    assert parts.stored.train is not None
    seen = [parts.stored.train.take([0, 1], epoch)[0][0] for epoch in range(6)]
    assert all(torch.equal(seen[epoch], seen[epoch + 3]) for epoch in range(3))
    assert not any(torch.equal(seen[0], seen[epoch]) for epoch in (1, 2))


def test_half_precision_changes_the_third_digit(weights: Path, tmp_path: Path) -> None:
    whole, *_ = trained(tmp_path / "whole", weights, "freeze=last_blocks")
    half, *_ = trained(tmp_path / "half", weights, "freeze=last_blocks", "cache.dtype=bf16")
    assert half != whole
    assert np.allclose(half, whole, rtol=2e-2)


def test_without_room_the_rows_stay_in_memory_and_without_that_nothing_is_stored(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, *_ = trained(tmp_path / "whole", weights, "freeze=classifier_only", "cache.activations=off")
    held, *_ = trained(tmp_path / "held", weights, "freeze=classifier_only", "cache.limit_gb=1e-9")
    assert "activations stay in memory" in caplog.text
    monkeypatch.setattr(features.Held, "fill", lambda *given: (_ for _ in ()).throw(NoRoom("full")))
    computed, *_ = trained(tmp_path / "computed", weights, "freeze=classifier_only", "cache.limit_gb=1e-9")
    assert "every epoch runs the whole network: full" in caplog.text
    assert computed == whole
    assert close(held, whole)


def test_an_interrupted_run_goes_on_from_stored_activations(weights: Path, tmp_path: Path) -> None:
    straight, *_ = trained(tmp_path / "straight", weights, "freeze=lp_ft")
    config = compose([*TINY, f"model.weights={weights}", f"paths.cache={tmp_path / 'cache'}", "freeze=lp_ft"])
    half = replace(config, trainer=replace(config.trainer, patience=None))

    class Ends:
        cell, number = None, None

        def report(self, value: float, step: int) -> None: ...

        def should_prune(self) -> bool:
            return True

    for _ in range(3):
        with pytest.raises(Exception, match="pruned after epoch"):
            run(half, tmp_path / "parts", trial=Ends())
    run(half, tmp_path / "parts")
    rows = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [(row["train/loss"], row["val/loss"]) for row in rows] == straight


def test_a_wrong_row_does_not_pass_the_final_test(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Store.take
    monkeypatch.setattr(Store, "take", lambda self, places: tuple(row + 3.0 for row in take(self, places)))
    with pytest.raises(features.Disagreement, match=r"add cache\.activations=off"):
        trained(tmp_path / "run", weights, "freeze=classifier_only")


def test_heads_that_share_stored_test_images_are_refused_one_that_the_whole_network_sees_otherwise(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["freeze=classifier_only", "trainer.eval_batch_size=4", f"paths.cache={tmp_path / 'cache'}"]
    config = compose([*TINY, f"model.weights={weights}", *words])
    take = features.ActivationSet.take

    def one_wrong(self: features.ActivationSet, positions: list[int], epoch: int) -> Any:
        rows, labels = take(self, positions, epoch)
        wrong = torch.tensor([[len(self) == 10 and position == 9] for position in positions])
        return tuple(torch.where(wrong, row + 30.0, row) for row in rows), labels

    monkeypatch.setattr(features.ActivationSet, "take", one_wrong)
    assert run(config, tmp_path / "alone")["metrics"]["test"]  # which asks the whole network
    with pytest.raises(features.Disagreement, match=r"logits differ by"):
        run(config, tmp_path / "shared", shared=Stock())


def test_every_test_image_goes_through_the_whole_network_whichever_seed_computed_its_row(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "freeze=classifier_only",
        "dataset.kwargs.size=90",
        "dataset.kwargs.test_size=0",
        f"paths.cache={tmp_path / 'cache'}",
        f"model.weights={weights}",
    ]
    seen: dict[bytes, int] = {}  # by the pixels: how often the whole network has answered to an image

    def count(split: frontier.Split, images: torch.Tensor) -> Any:
        for image in images.numpy():
            seen[image.tobytes()] = seen.get(image.tobytes(), 0) + 1
        return whole(split, images)

    whole = frontier.Split.whole
    monkeypatch.setattr(frontier.Split, "whole", count)
    shared, tested, opened = Stock(), [], features.of_test

    def keep(*given: Any) -> Any:
        part, kit = given[4].dataset, given[5]
        tested.append([image.tobytes() for image in ready(torch.stack([part[i][0] for i in range(10)]), kit).numpy()])
        return opened(*given)

    monkeypatch.setattr(features, "of_test", keep)
    for seed in (0, 1):  # each tests images of its own, some of which the other has trained on
        run(compose([*TINY, *words, f"seed={seed}"]), tmp_path / str(seed), shared=shared)
    assert len({*tested[0], *tested[1]}) > 10
    assert all(seen[image] for part in tested for image in part)  # twice where a stored row was held against a fresh one


def test_rows_of_other_images_are_noticed_and_left_aside(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, *_ = trained(tmp_path / "whole", weights, "freeze=classifier_only")
    for rows in (tmp_path / "cache/activations").glob("*/rows.bin"):
        rows.write_bytes(bytes(rows.stat().st_size))
    again, *_ = trained(tmp_path / "again", weights, "freeze=classifier_only")
    assert caplog.text.count("holds other activations than these images give now: remove it") == 2
    assert again == whole
