"""What a sweep means: Hydra's own grid where all is listed, a search space where a range is given, texts that parse back."""

import random
import re
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fourfold import groups
from fourfold.compose import composed
from fourfold.config import ConfigError
from fourfold.study.space import NAME_LENGTH, Cell, grid, params, read, to_overrides

LR = "optimizer.lr=tag(log,interval(1e-5,1e-1))"
MOMENTUM = {"when": {"optimizer": "sgd"}, "params": {"optimizer.momentum": "interval(0,0.99)"}}


def parsed(*texts: str) -> list[Override]:
    return OverridesParser.create().parse_overrides([*texts])


def cells(*texts: str, **more: Any) -> list[Cell]:
    return read(parsed(*texts), **{"n_trials": 7, **more})


def value_of(override: str) -> Any:
    return parsed(override)[0].value()


@pytest.mark.parametrize(
    "texts",
    [
        ["seed=0"],
        ["freeze_strategy=full,head", "seed=0,1,2", "trainer.epochs=3"],
        ["seed=range(3)", "optimizer.lr=choice(1e-4,1e-3)", "model=a,b"],
        ["a=range(0,1,0.1)", "b=range(5,0,-2)"],
        ["a=1,2", "b=3,4", "a=5,6"],
        ["+a=1,2", "++b.c=3", "~d", "db@there=x,y"],
        ["a='x,y',\"it's\"", "b=[1,'2'],[]", "c={k:v},{k:'a b'}", "d=null,true", "e=a b,c:/d"],
        ["a=sort(3,1,2)", "b=int('5',6)", "c=${x},y", "d="],
    ],
)
def test_a_grid_is_that_of_hydra_in_its_order(texts: list[str]) -> None:
    there = [tuple(job) for batch in BasicSweeper.split_arguments(parsed(*texts), None) for job in batch]
    here = cells(*texts)
    assert [cell.fixed for cell in here] == there
    assert all((cell.points, cell.space, cell.budget) == (({},), {}, 1) for cell in here)


def test_a_value_written_twice_is_one_cell() -> None:
    assert [cell.fixed for cell in cells("a=1e-3,0.001,1e-03,x,'x','1',1")] == [("a=0.001",), ("a=x",), ("a='1'",), ("a=1",)]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 2 else 5)
    if kind == 0:
        return rng.randint(-(10**6), 10**6)
    if kind == 1:
        return rng.uniform(-1, 1) * 10 ** rng.randint(-20, 20)
    if kind == 2:
        return rng.choice([None, True, False])
    if kind < 5:
        return "".join(rng.choices("ab1 ,:=[]{}()'\"\\/$%@#-+.\t", k=rng.randint(1, 6)))
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {f"k{i}": random_value(rng, depth + 1) for i in range(rng.randint(0, 3))}


def literal(value: Any) -> str:
    """As a careful user would write it: every text in quotes, what would end them escaped."""
    if isinstance(value, str):
        escaped = re.sub(r"(\\*)(')", r"\1\1\\'", value)
        return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(each)}" for key, each in value.items()) + "}"
    return "null" if value is None else str(value)


def test_every_value_parses_back_to_itself() -> None:
    rng = random.Random(0)
    for _ in range(150):
        values = [random_value(rng) for _ in range(2)]
        (cell, *_) = cells(f"a={literal(values[0])}", f"b={literal(values[1])},other")
        assert [repr(value_of(text)) for text in cell.fixed] == [*map(repr, values)]
        if values[1] is None:  # not a choice(), says Hydra
            continue
        (searched,) = cells(f"b=tag(search,choice({literal(values[1])},other))")
        (text,) = to_overrides({"b": searched.space["b"].choices[0]})
        assert repr(value_of(text)) == repr(values[1])


def test_what_was_made_a_text_stays_one() -> None:
    """Hydra's own sweeper hands `str(1,2)` to the jobs as numbers."""
    assert [value_of(cell.fixed[0]) for cell in cells("a=str(1,true,x)")] == ["1", "true", "x"]
    assert [value_of(cell.fixed[0]) for cell in cells("a=str([1,2],x)")] == [["1", "2"], "x"]


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=interval(1,5)", FloatDistribution(1.0, 5.0)),
        ("a=tag(log,interval(1e-5,1e-1))", FloatDistribution(1e-5, 1e-1, log=True)),
        ("a=int(interval(1,5))", IntDistribution(1, 5)),
        ("a=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("a=int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("a=tag(search,range(5))", IntDistribution(0, 4)),
        ("a=tag(search,range(8,0,-2))", IntDistribution(2, 8, step=2)),
        ("a=tag(search,range(0,1,0.25))", FloatDistribution(0, 0.75, step=0.25)),
        ("a=tag(search,choice(x,1,'1'))", CategoricalDistribution(("x", "1", "'1'"))),
    ],
)
def test_what_is_searched(text: str, distribution: Any) -> None:
    (cell,) = cells("seed=1", text)
    assert (cell.name, cell.fixed, cell.points, cell.budget) == ("all", ("seed=1",), (), 7)
    assert cell.space == {"a": distribution}


def test_upstream_reads_intervals_alike() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override as upstream

    for text in ("a=interval(0,1)", "a=tag(log,interval(1e-5,1e-1))", "a=int(interval(1,5))", "a=tag(log,int(interval(1,64)))"):
        assert cells(text)[0].space["a"] == upstream(parsed(text)[0])


def test_every_cell_has_the_same_space_and_budget() -> None:
    found = cells("freeze_strategy=full,head", LR, "seed=0,1")
    assert [cell.fixed for cell in found] == [
        (f"freeze_strategy={freeze}", f"seed={seed}") for freeze in ("full", "head") for seed in (0, 1)
    ]
    assert all(cell.space == found[0].space and cell.budget == 7 for cell in found)


def test_the_last_word_on_a_key_counts() -> None:
    assert cells(LR, "optimizer.lr=1e-3") == [Cell("all", ("optimizer.lr=0.001",), ({},), {}, 1)]
    assert [*cells("optimizer.lr=1,2", LR)[0].space] == ["optimizer.lr"]


def test_a_condition_adds_to_the_cells_where_it_holds() -> None:
    sgd, adamw = cells("optimizer=sgd,adamw", LR, conditional=[MOMENTUM])
    assert [*sgd.space] == ["optimizer.lr", "optimizer.momentum"]
    assert [*adamw.space] == ["optimizer.lr"]
    assert sgd.budget == adamw.budget


def test_a_condition_may_hold_by_default_and_leaves_what_is_given() -> None:
    assert [*cells(LR, conditional=[MOMENTUM])[0].space] == ["optimizer.lr"]
    assert [*cells(LR, conditional=[MOMENTUM], chosen={"optimizer": "sgd"})[0].space] == ["optimizer.lr", "optimizer.momentum"]
    (given,) = cells("optimizer=sgd", "optimizer.momentum=0.5", LR, conditional=[MOMENTUM])
    assert [*given.space] == ["optimizer.lr"]
    assert "optimizer.momentum=0.5" in given.fixed


def test_a_condition_may_add_cells_and_ask_for_one_of_several() -> None:
    condition = {"when": {"freeze": ["last_blocks", "full"]}, "params": {"freeze.blocks": "1,2"}}
    found = cells("freeze_strategy=last_blocks,head", conditional=[condition])
    assert [cell.fixed[1:] for cell in found] == [("freeze_strategy.blocks=1",), ("freeze_strategy.blocks=2",), ()]
    assert len({cell.name for cell in found}) == 3


def test_points_are_tried_first_where_they_are_searched() -> None:
    enqueue = [{"optimizer.lr": 1e-3, "optimizer.momentum": 0.9}, {"optimizer.lr": "1e-2"}, {"optimizer.lr": 0.01}]
    sgd, adamw = cells("optimizer=sgd,adamw", LR, conditional=[MOMENTUM], enqueue=enqueue)
    assert sgd.points[0] == {"optimizer.lr": "optimizer.lr=0.001", "optimizer.momentum": "optimizer.momentum=0.9"}
    assert adamw.points == ({"optimizer.lr": "optimizer.lr=0.001"}, {"optimizer.lr": "optimizer.lr=0.01"})
    assert params(sgd.space, sgd.points[0]) == {"optimizer.lr": 0.001, "optimizer.momentum": 0.9}


def test_points_and_parameters_are_each_others_inverse() -> None:
    (cell,) = cells(
        LR,
        "+n=int(interval(1,9))",
        "c=tag(search,choice('1',1,[a,b]))",
        enqueue=[{"optimizer.lr": 3e-5, "n": 4, "c": "'1'"}, {"c": ["a", "b"]}],
    )
    for point in cell.points:
        assert to_overrides(params(cell.space, point)) == tuple(point.values())
    assert [value_of(text) for text in cell.points[0].values()] == [3e-5, 4, "1"]


def test_numbers_parse_back_to_the_same_number() -> None:
    rng = random.Random(0)
    drawn = {f"k{i}": rng.random() * 10 ** rng.randint(-30, 30) for i in range(200)} | {"n": 7, "low": 5e-324, "b": True}
    assert [value_of(text) for text in to_overrides(drawn)] == [*drawn.values()]


def test_a_grid_lists_every_value() -> None:
    (cell,) = cells("a=tag(search,range(0,1,0.1))", "b=tag(search,choice(x,y))", "c=int(interval(1,3))")
    assert grid(cell.space) == {"a": [i / 10 for i in range(10)], "b": ["x", "y"], "c": [1, 2, 3]}
    assert grid(cells(LR)[0].space) is None


def test_names_are_short_safe_and_unique() -> None:
    long = ",".join(f"'{'x' * 200}{i}'" for i in range(3))
    found = cells("a.lr=1,1.0,'1'", "b.lr=x/y,x:y,'x y'", f"+c@d={long}", "seed=0,1")
    names = [cell.name for cell in found]
    assert len({*names}) == len(names) == 3 * 3 * 3 * 2
    assert all(re.fullmatch(r"[A-Za-z0-9._+=,-]+", name) and len(name) <= NAME_LENGTH for name in names)


def test_a_name_is_read_at_a_glance_and_does_not_change_when_values_are_added() -> None:
    few = [cell.name for cell in cells("freeze_strategy=full,head", "optimizer.lr=1e-3", "seed=0,1")]
    more = [cell.name for cell in cells("freeze_strategy=bias,full,head", "optimizer.lr=1e-2", "seed=0,1,2")]
    assert few == [f"freeze_strategy={freeze},seed={seed}" for freeze in ("full", "head") for seed in (0, 1)]
    assert {*few} < {*more}


@pytest.mark.parametrize(
    ("texts", "more", "words"),
    [
        (["a=tag(lgo,interval(1,2))"], {}, "lgo is not one of search, log, did you mean log?"),
        (["a=tag(log,interval(0,1))"], {}, "needs bounds above 0"),
        (["a=interval(2,1)"], {}, "the smaller one first"),
        (["a=tag(log,choice(1,2))"], {}, "use interval()"),
        (["a=tag(log,range(1,9,2))"], {}, "no step but 1"),
        (["a=range(1,1)"], {}, "has no values"),
        ([LR], {"enqueue": [{"optimizer.lr": 1.0}]}, "optimizer.lr=1.0, but the search is over"),
        ([LR], {"enqueue": [{"optimizer.lr": "fast"}]}, "optimizer.lr=fast, but the search is over"),
        ([LR], {"enqueue": [{"optimizer.rl": 1e-3}]}, "names optimizer.rl, which no cell searches, did you mean optimizer.lr?"),
        ([LR], {"conditional": [{"when": {"a": 1}, "parms": {}}]}, "give when and params"),
        ([LR], {"conditional": [{"when": {"optimizer.lr": 1}, "params": {}}]}, "which is searched"),
    ],
)
def test_what_cannot_be_searched_is_refused(texts: list[str], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        cells(*texts, **more)


@pytest.mark.parametrize("name", groups.options((groups.conf_dir(),))["search"])
def test_every_option_of_search_is_a_sweep(name: str) -> None:
    swept = composed([f"search={name}"]).hydra.sweeper.params or {}
    found = cells(*(f"{key}={value}" for key, value in swept.items()))
    assert (name == "none") == (not swept)
    assert len(found) == {"lr_grid": 5, "lr_wd_grid": 15}.get(name, 1)
    assert bool(found[0].space) == (name not in ("none", "lr_grid", "lr_wd_grid"))
    if "optimizer.lr" in found[0].space:
        assert found[0].space["optimizer.lr"] == FloatDistribution(1e-5, 1e-1, log=True)
