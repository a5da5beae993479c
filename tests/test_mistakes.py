"""What a run answered to each test image is kept, and agrees with what its result says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourfold import mistakes
from fourfold.data.batches import in_order
from fourfold.data.images import TensorSet
from fourfold.run import run
from test_run import config


def test_the_answers_make_the_confusion_matrix_and_the_accuracy(tmp_path: Path) -> None:
    result = run(config("dataset.test_size=90", "trainer.eval_batch_size=40", "dataset.val_size=30"), tmp_path)
    answers = np.load(tmp_path / "answers.npz")
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (answers["target"], answers["predicted"]), 1)
    assert confusion.tolist() == result["confusion"]
    assert np.mean(answers["target"] == answers["predicted"]) == pytest.approx(result["metrics"]["test"]["acc"])


def test_the_surest_mistakes_come_first_with_a_picture_each(tmp_path: Path) -> None:
    run(config("dataset.test_size=90"), tmp_path)
    answers, told = np.load(tmp_path / "answers.npz"), json.loads((tmp_path / "mistakes.json").read_text())
    wrong = answers["target"] != answers["predicted"]
    assert len(told) == min(mistakes.SHOWN, wrong.sum())
    assert [each["confidence"] for each in told] == sorted((each["confidence"] for each in told), reverse=True)
    assert told[0]["confidence"] >= answers["confidence"][wrong].max() - 1e-3  # float16
    assert all(wrong[each["image"]] for each in told)
    assert all(each["target"] != each["predicted"] for each in told)
    with Image.open(tmp_path / "mistakes.jpg") as strip:
        assert strip.size == (mistakes.SIDE * len(told), mistakes.SIDE)


def test_a_picture_shows_the_pixels_of_its_image_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config()
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[0, 0], images[2, 2] = 200, 100
    test = in_order(TensorSet(images, torch.arange(3), np.arange(3), 3), asked)
    read, reads = test.read, list[int]()
    monkeypatch.setattr(test, "read", lambda positions: (reads.extend(positions), read(positions))[1])
    strip = mistakes._strip(mistakes._pictures(test, [2, 0]))
    assert strip.size == (2 * mistakes.SIDE, mistakes.SIDE)
    assert strip.getpixel((5, 5)) == (0, 0, 100)
    assert strip.getpixel((mistakes.SIDE + 5, 5)) == (200, 0, 0)
    assert len(mistakes._pictures(test, [0, 1, 2])) == 3
    assert reads == [2, 0, 1]


def test_a_narrow_picture_keeps_its_shape() -> None:
    assert mistakes._picture(torch.rand(1, 20, 10)).size == (mistakes.SIDE // 2, mistakes.SIDE)


def test_a_run_without_classes_keeps_no_answers(tmp_path: Path) -> None:
    run(config("dataset=fake", "dataset.task=regression", "trainer.loss.name=auto"), tmp_path)
    assert not (tmp_path / "answers.npz").exists()
