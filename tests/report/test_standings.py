"""The diagram of mean ranks has room for names of any length."""

import pytest

from fourfold.report import standings
from fourfold.report.canvas import styled
from fourfold.study.ranking import Ranking


@pytest.mark.parametrize("length", [4, 60, 200])
def test_the_ranks_keep_room_beside_the_names(length: int) -> None:
    names = tuple(f"{letter}{'x' * (length - 1)}" for letter in "abc")
    ranking = Ranking(names, (1.2, 1.9, 2.9), 6, 8.3, 0.016, 1.35, ((names[0], names[1]),))
    with styled():
        (axes,) = standings.figure(ranking).axes
        assert axes.get_position().width * axes.figure.get_figwidth() > 1.5  # inches
    assert names[0] in standings.panel(ranking)
