"""What a run answered to each test image is kept, and agrees with what its result says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourfold import mistakes
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
    with Image.open(tmp_path / "mistakes.png") as strip:
        assert strip.size == (mistakes.SIDE * len(told), mistakes.SIDE)


def test_a_picture_shows_the_pixels_of_its_image() -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, 0], images[1, 2] = 200, 100
    strip = mistakes._strip(images)
    assert strip.getpixel((5, 5)) == (200, 0, 0)
    assert strip.getpixel((mistakes.SIDE + 5, 5)) == (0, 0, 100)
    assert mistakes._strip(torch.rand(1, 1, 20, 10)).size == (mistakes.SIDE, mistakes.SIDE)


def test_a_run_without_classes_keeps_no_answers(tmp_path: Path) -> None:
    run(config("dataset=fake", "dataset.task=regression", "trainer.loss.name=auto"), tmp_path)
    assert not (tmp_path / "answers.npz").exists()
