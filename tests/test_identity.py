"""Two runs are the same run exactly when everything that changes the result is the same."""

import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from fourfold.compose import compose
from fourfold.config import RunConfig
from fourfold.identity import NOT_IN_THE_PARTS, NOT_IN_THE_RESULT, folder_name, run_id


@pytest.fixture(scope="module")
def text() -> str:
    return json.dumps(
        asdict(
            compose(
                [
                    "freeze=lora",
                    "model=resnet18",
                    "transform=standard",
                    "regularizer=co_tuning",
                    "adapt=coral",
                    "dataset.shots=5",
                ]
            )
        )
    )


@pytest.fixture
def plain(text: str) -> dict[str, Any]:
    return json.loads(text)  # read back from disk, as the report does


def changed(plain: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *above, name = key.split(".")
    node = copy = json.loads(json.dumps(plain))
    for part in above:
        node = node[part]
    assert name in node, key
    node[name] = value
    return copy


def leaves(kind: type = RunConfig, prefix: str = "") -> list[str]:
    hints = get_type_hints(kind)
    return [
        key
        for field in fields(kind)
        for key in (
            leaves(hints[field.name], f"{prefix}{field.name}.") if is_dataclass(hints[field.name]) else [prefix + field.name]
        )
    ]


@pytest.mark.parametrize("key", leaves())
def test_a_key_is_in_the_identity_unless_it_is_listed_with_a_reason(plain: dict[str, Any], key: str) -> None:
    parts = key.split(".")
    listed = any(".".join(parts[: i + 1]) in NOT_IN_THE_RESULT for i in range(len(parts)))
    assert (run_id(changed(plain, key, "something else")) == run_id(plain)) == listed


@pytest.mark.parametrize("augmentation", ["none", "light", "standard", "randaugment"])
def test_images_that_are_kept_make_another_run_where_they_are_other_images(plain: dict[str, Any], augmentation: str) -> None:
    augmented = changed(plain, "transform.augmentation", augmentation)
    ids = {keep: run_id(changed(augmented, "cache.images", keep)) for keep in ("off", "auto", "ram", "disk")}
    assert ids["auto"] == ids["off"]
    assert ids["ram"] == ids["disk"]
    assert (ids["ram"] == ids["off"]) == (augmentation in ("none", "light"))
    before = {key: value for key, value in augmented.items() if key != "cache"}  # a run from before there was such a key
    assert run_id(before) == ids["off"]


def test_keys_that_only_co_tuning_reads_are_in_no_other_identity(plain: dict[str, Any]) -> None:
    other = changed(plain, "regularizer.name", "l2_sp")
    before = json.loads(json.dumps(other))
    for key in ("relationship", "temperature"):
        del before["regularizer"][key]  # a run from before there were such keys
        assert run_id(changed(other, f"regularizer.{key}", "something else")) == run_id(other)
    assert run_id(before) == run_id(other)


def test_what_adds_nothing_is_not_in_the_identity(plain: dict[str, Any]) -> None:
    off = changed(changed(plain, "regularizer.name", "none"), "regularizer.weight", 0.5)
    off = changed(changed(off, "adapt.name", "none"), "freeze_strategy.adapter.kind", "none")
    before = {group: values for group, values in off.items() if group not in ("regularizer", "adapt")}
    before["freeze_strategy"] = {key: value for key, value in off["freeze_strategy"].items() if key != "adapter"}
    assert off["dataset"]["folds"] is None
    before["dataset"] = {key: value for key, value in off["dataset"].items() if key != "folds"}
    assert run_id(changed(off, "dataset.folds", 5)) != run_id(off)
    assert run_id(before) == run_id(off) != run_id(plain)
    assert folder_name(off).startswith("glyph_digits-resnet18-lora-s0-")
    assert folder_name(plain).startswith("glyph_digits-resnet18-lora_co_tuning_coral-s0-")


def test_what_is_left_out_exists() -> None:
    known = {".".join(leaf.split(".")[: i + 1]) for leaf in leaves() for i in range(len(leaf.split(".")))}
    assert set(NOT_IN_THE_RESULT) <= known
    assert set(NOT_IN_THE_PARTS) <= known


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("optimizer.lr", 1, 1.0),
        ("optimizer.lr", 1e-3, 0.001),
        ("trainer.clip_norm", 5, 5.0),
        ("model.mean", [0, 1, 0.5], [0.0, 1.0, 0.5]),
        ("scheduler.milestones", [1], [1.0]),
    ],
)
def test_equal_numbers_are_the_same_run(plain: dict[str, Any], key: str, one: Any, other: Any) -> None:
    assert run_id(changed(plain, key, one)) == run_id(changed(plain, key, other))


def test_one_block_is_not_all_blocks(plain: dict[str, Any]) -> None:
    assert run_id(changed(plain, "freeze_strategy.blocks", 1)) != run_id(changed(plain, "freeze_strategy.blocks", 1.0))


def test_the_order_of_keys_does_not_count(plain: dict[str, Any]) -> None:
    backwards = {key: plain[key] for key in reversed(plain)}
    backwards["model"] = {key: plain["model"][key] for key in reversed(plain["model"])}
    assert run_id(backwards) == run_id(plain)


def test_the_identity_does_not_change_its_argument(plain: dict[str, Any]) -> None:
    before = json.dumps(plain)
    run_id(plain)
    assert json.dumps(plain) == before


@pytest.mark.parametrize("source", ["image_folder", "csv"])
def test_where_the_folder_is_the_data_another_folder_is_another_run(plain: dict[str, Any], source: str) -> None:
    own = changed(plain, "dataset.source", source)
    assert run_id(changed(own, "dataset.root", "a")) != run_id(changed(own, "dataset.root", "b"))


def test_weights_of_a_run_count_as_that_run_wherever_it_lies(plain: dict[str, Any]) -> None:
    def starting_from(path: str) -> str:
        return run_id(changed(plain, "model.weights", path))

    here = "outputs/pretrained/glyphs-micro_resnet-from_scratch-s0-0123456789ab/best.pt"
    assert starting_from(here) == starting_from(f"/scratch/elsewhere/{here}")
    assert starting_from(here) != starting_from(here.replace("0123456789ab", "0123456789ac"))
    assert starting_from(here) != starting_from(here.replace("best.pt", "last.pt"))
    assert starting_from("a/backbone.pt") != starting_from("b/backbone.pt")


def test_a_folder_tells_the_run_and_is_safe_to_create(plain: dict[str, Any], tmp_path: Any) -> None:
    name = folder_name(plain)
    assert name == f"glyph_digits-resnet18-lora_co_tuning_coral-s0-{run_id(plain)}"
    odd = changed(changed(plain, "model.name", "owner/repo:vit*?é" + "x" * 400), "dataset.name", "../..")
    name = folder_name(odd)
    assert "/" not in name
    assert len(name.encode()) <= 255
    (tmp_path / name).mkdir()
