"""`fourfold info` tells what a model is made of and what of it would learn, without a download."""

import pytest
import torch

from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.info import show
from fourfold.models import create

SMALL = ["dataset=glyph_digits", "model=micro_resnet"]


def told(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    show(compose(overrides))
    return capsys.readouterr().out


def row(page: str, block: str) -> list[str]:
    cells = ([cell.strip() for cell in line.split("│")] for line in page.splitlines())
    return next(line[1:-1] for line in cells if len(line) > 2 and line[1] == block)


def test_blocks_shapes_and_what_learns(capsys) -> None:
    page = told([*SMALL, "freeze=last_blocks"], capsys)
    assert row(page, "stage2") == ["stage2", "32x8x8", "14,528", "-"]
    assert row(page, "stage3") == ["stage3", "64x4x4", "57,728", "all"]
    assert row(page, "head") == ["head", "10", "650", "all"]
    assert "58,378 (74.8%) learn" in page
    assert "images: 3 x 32 x 32" in page


def test_phases_say_since_when(capsys) -> None:
    page = told([*SMALL, "freeze=gradual", "freeze_strategy.unfreeze_every=2"], capsys)
    assert row(page, "stage3")[-1] == "all, from epoch 2"
    assert row(page, "stem")[-1] == "all, from epoch 8"
    assert row(page, "head")[-1] == "all"


def test_a_share_of_a_block(capsys) -> None:
    assert row(told([*SMALL, "freeze=norm_only"], capsys), "stage1")[-1] == "4 of 6 tensors"


def test_named_weights_are_not_fetched(capsys) -> None:
    page = told(["model=resnet18", "model.image_size=32", "dataset=glyph_digits"], capsys)
    assert "a run would start from the source's default weights; nothing was downloaded" in page
    assert row(page, "layer4.1")[1] == "512x1x1"


def test_a_file_is_read_and_reported(capsys, tmp_path) -> None:
    config = compose([*SMALL, "model.weights=null", "freeze=full"])
    state = create(config.model, 75).net.state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "best.pt")
    page = told([*SMALL, f"model.weights={tmp_path / 'best.pt'}"], capsys)
    assert f"weights: {tmp_path / 'best.pt'}" in page
    assert "unexpected: 1 tensors, such as extra" in page
    assert "dropped: 2 tensors, such as head.weight, head.bias" in page


def test_what_the_strategy_cannot_do_is_said(capsys) -> None:
    with pytest.raises(ConfigError, match="has 4 blocks"):
        told([*SMALL, "freeze=last_blocks", "freeze_strategy.blocks=7"], capsys)
