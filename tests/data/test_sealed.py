"""The test split is read once."""

import pytest

from fourfold.data import SealedSplit, TestSplitOpened, load_splits

from .making import Preprocessing, Shapes, dataset, transform


def test_it_opens_once() -> None:
    images = Shapes([(2, 2)] * 3)
    sealed = SealedSplit(images)
    assert (len(sealed), sealed.opened) == (3, 0)
    assert sealed.open() is images
    with pytest.raises(TestSplitOpened, match="opened before"):
        sealed.open()
    assert sealed.opened == 1


def test_a_run_gets_it_sealed() -> None:
    splits = load_splits(dataset(), transform("none"), Preprocessing(), seed=0)
    assert len(splits.test) == 12
    assert splits.test.opened == 0
