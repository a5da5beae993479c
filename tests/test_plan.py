"""A plan says what the sweep will do, and changes nothing."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fourfold import cli
from fourfold.compose import compose, composed
from fourfold.prospects import prospects
from fourfold.study.space import Cell, written
from fourfold.study.space import read as read_cells

TINY = [
    "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=2", "dataset.val_size=10", "dataset.test_size=10",
    "model=micro_resnet", "freeze=from_scratch", "trainer.batch_size=10", "trainer.device=cpu", "trainer.threads=1",
    "trainer.epochs=1", "trainer.progress=false", "logger=none", "study=s",
]  # fmt: skip
Told = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Told:
    """The exit code, output and errors of a command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fourfold"])

    def command(*args: str) -> tuple[int, str, str]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        code = cli.command(args)
        return code, *capfd.readouterr()

    return command


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def rows(out: str) -> dict[str, list[str]]:
    """The cells of the table by the name of their row."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in out.partition("───\n")[2].partition("\n\n")[0].splitlines())
    return {name: cells for name, *cells in lines}


def overrides(*words: str):
    return OverridesParser.create().parse_overrides([*words])


def test_a_plan_of_a_half_finished_grid_counts_what_is_done_and_writes_nothing(tell: Told, tmp_path: Path) -> None:
    assert tell("-m", *TINY, "seed=0,1")[0] == 0  # the same cells, as the plan's sweep would name them
    assert tell(*TINY, "seed=2")[0] == 0  # the same run, from no sweep at all
    before = tree(tmp_path)
    code, out, _ = tell("plan", "-m", *TINY, "dataset.shots=2,3", "seed=0,1,2,3")
    assert code == 0
    assert tree(tmp_path) == before
    assert rows(out)["shots=2"][:3] == ["4", "3", "78,042"]
    assert rows(out)["shots=3"][:3] == ["4", "0", "78,042"]
    assert "8 runs: 3 done, 5 to do." in out
    assert "2 set-ups tried in " in out


def test_a_finished_grid_is_told_from_its_results(tell: Told) -> None:
    assert tell("-m", *TINY, "seed=0,1")[0] == 0
    code, out, _ = tell("plan", *TINY, "seed=0,1")
    assert code == 0
    assert "2 runs: 2 done, 0 to do." in out
    assert "tried" not in out
    assert rows(out)["what is swept"][:3] == ["2", "2", "78,042"]


@pytest.mark.parametrize("words", [("plan",), ("plan", "-m"), ("-m", "plan=true")])
def test_a_plan_of_a_new_study_makes_no_folder(words: tuple[str, ...], tell: Told, tmp_path: Path) -> None:
    code, out, _ = tell(*words, *TINY, "seed=0,1,1", "optimizer.lr=1e-3,0.001,1e-2")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert "4 runs: 0 done, 4 to do; 5 written twice and left out. Study: outputs/s" in out
    assert "1 set-up tried in " in out


def test_a_search_counts_its_trials_and_its_repeats(tell: Told) -> None:
    search = ["optimizer=adamw,sgd", "optimizer.lr=interval(1e-4,1e-2)", "search.n_trials=2", "search.repeats=1"]
    code, out, _ = tell("plan", *TINY, *search, "search.timeout=1s")
    assert code == 0
    assert [row[:2] for row in rows(out).values()] == [["3", "0"], ["3", "0"]]
    assert "search.timeout=1 s: it " in out
    assert tell("-m", *TINY, *search, "search.sampler=random")[0] == 0
    code, out, _ = tell("plan", *TINY, *search, "search.sampler=random")
    assert "6 runs: 6 done, 0 to do." in out


def test_a_broken_cell_is_named_and_broken_sweeps_are_refused(tell: Told) -> None:
    code, out, _ = tell("plan", *TINY, "dataset.shots=2,1000")
    assert code == 0
    assert "shots=1000 cannot run: dataset.shots=1000, but" in out
    code, out, err = tell("plan", *TINY, "dataset.shots=1000", "seed=0,1")
    assert code == 2
    assert err.startswith("fourfold: no run of this sweep can begin: dataset.shots=1000, but")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "plan=no"), "plan=no is not plan=true"),
        (("plan", "seed=0,x"), "seed=0,x has the wrong type"),
        (("plan", "seed"), "`seed` is neither a command nor KEY=VALUE"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: tuple[str, ...], said: str, tell: Told, tmp_path: Path) -> None:
    code, _, err = tell(*words, *TINY)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_every_cell_is_composed_as_its_job_would_be(tmp_path: Path) -> None:
    words = [*TINY, "optimizer=adamw,sgd", "optimizer.lr=1e-3,0.5", "seed=3,4", "dataset.kwargs.image_size=32,64"]
    cells = read_cells(overrides(*words), n_trials=1)
    found = prospects(cells, lambda words: composed(words))
    assert [each.config for each in found] == [compose(cell.fixed) for cell in cells]
    assert len({each.folder for each in found}) == len(found) == 16
    assert len({each.key for each in found}) == 4
    assert {each.row for each in found} == {
        f"image_size={size} optimizer={name}" for name in ("adamw", "sgd") for size in (32, 64)
    }


def test_a_search_is_tried_in_its_middle_and_at_its_corners() -> None:
    words = [*TINY, "trainer.batch_size=tag(search,choice(4,8))", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    cells = read_cells(overrides(*words), n_trials=1)
    tried = [(each.config.trainer.batch_size, each.config.optimizer.lr) for each in prospects(cells, lambda w: composed(w))]
    assert tried[0] == pytest.approx((4, 1e-3))
    assert {size for size, _ in tried} == {4, 8}
    assert {rate for _, rate in tried} >= {1e-4, 1e-2}
    assert len(prospects(cells, lambda w: composed(w), one_of_each=True)) == 2


def test_the_run_that_others_start_from_comes_first(tmp_path: Path) -> None:
    fixed = ("dataset=digits", "model=micro_resnet", "model.weights=experiment:pretrain_embedded_quick")
    cells = [Cell(f"{seed}", (*fixed, f"paths.outputs={tmp_path}", f"seed={seed}"), ({},), {}, 1) for seed in (0, 1)]
    start, *others = prospects(cells, lambda w: composed(w))
    assert (start.cell, start.row, start.config.dataset.name) == (None, "experiment:pretrain_embedded_quick", "glyphs")
    assert start.folder.parent == tmp_path / "pretrained"
    assert [each.config.model.weights for each in others] == [None, None]  # nobody has made them yet
    start.folder.mkdir(parents=True)
    (start.folder / "result.json").write_text("{}")
    assert [each.config.model.weights for each in prospects(cells, lambda w: composed(w))[1:]] == [
        str(start.folder / "best.pt")
    ] * 2


def test_values_that_are_written_twice_are_counted() -> None:
    assert written(overrides("seed=0,1,1", "optimizer.lr=1e-3,0.001", "model=resnet18")) == 6
    assert written(overrides("seed=range(3)", "optimizer.lr=interval(0,1)")) == 3
