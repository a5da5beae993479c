"""A dataclass as nested dicts: what the standard library makes of it, to the value."""

import dataclasses
from collections import namedtuple
from typing import Any

import pytest

from fourfold.compose import compose
from fourfold.records import asdict
from fourfold.state import Proof, State


@dataclasses.dataclass
class Odd:
    values: Any


def test_a_configuration_is_what_the_standard_library_makes_of_it() -> None:
    config = compose(["experiment=quadrants_quick"])
    assert asdict(config) == dataclasses.asdict(config)


def test_lists_tuples_and_records_in_them_as_well() -> None:
    state = State(scores=[0.5, 0.75], proofs=[Proof(0, (0, 1), 3, "before")])
    assert asdict(state) == dataclasses.asdict(state)
    assert asdict(state)["proofs"][0]["epochs"] == (0, 1)


@pytest.mark.parametrize("value", [{1: [Proof(0, (0, 0), 1, "a")]}, {"a", "b"}, namedtuple("Pair", "a b")(1, [2]), 1 + 2j])
def test_whatever_else_a_field_holds_is_copied(value: Any) -> None:
    assert asdict(Odd(value)) == dataclasses.asdict(Odd(value))


def test_nothing_of_the_copy_is_the_original() -> None:
    record = Odd({"rates": [1, {"a": {2}}]})
    copied = asdict(record)
    copied["values"]["rates"][1]["a"].add(3)
    copied["values"]["rates"].append(4)
    assert record.values == {"rates": [1, {"a": {2}}]}
