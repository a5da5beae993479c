"""The test split, which nothing but the final evaluation may read, once."""

from collections.abc import Sized
from typing import cast

from torch.utils.data import Dataset


class TestSplitOpened(RuntimeError):
    """The test split was asked for a second time: something would be chosen on it."""

    __test__ = False  # not a test case, whatever pytest makes of the name


class SealedSplit:
    """Hands out the test images once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.opened = 0  # how often it was opened

    def __len__(self) -> int:
        return len(cast(Sized, self._dataset))

    def open(self) -> Dataset:
        """The test images.

        Raises:
            TestSplitOpened: on the second call.
        """
        if self.opened:
            raise TestSplitOpened(
                "the test split was opened before: it is for the final evaluation, when nothing is left to choose"
            )
        self.opened += 1
        return self._dataset

    def again(self) -> "SealedSplit":
        """The same images under a seal of their own, for another run."""
        return SealedSplit(self._dataset)
