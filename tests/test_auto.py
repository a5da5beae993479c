"""`quadrant=auto` and `search.warm_start=transferability`: what was measured before the first run decides what runs."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from fourfold import auto, cli
from fourfold.advice import EVIDENCE, in_order
from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.files import read_json
from fourfold.placement import Placement
from fourfold.study.results import collect
from fourfold.study.space import Cell
from fourfold.study.trials import TrialView
from hydra_plugins.fourfold_sweeper import _placing
from test_place import FAKE, OWN, measured, weights

TINY = [
    *FAKE, *OWN, "dataset.shots=20", "trainer.epochs=1", "trainer.batch_size=20", "trainer.threads=1", "trainer.progress=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fourfold"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")


@pytest.fixture
def known(tmp_path: Path) -> Placement:
    return measured(compose([*TINY, weights(tmp_path, 1.0)]))


def run(*words: str) -> None:
    assert cli.command([*words]) == 0


def test_a_run_says_what_was_chosen_and_is_the_run_that_was_typed(tmp_path: Path, known: Placement) -> None:
    outputs = [weights(tmp_path, 1.0), f"paths.outputs={tmp_path / 'out'}"]
    run("quadrant=auto", *TINY, *outputs)
    (result,) = collect(tmp_path / "out")
    choice = auto.choose(known)
    assert (choice.similarity, choice.size) == ("similar", "small")
    assert result.strategy == EVIDENCE["similar", "small"].suggested
    assert result.quadrant is not None
    assert (result.quadrant.name, result.quadrant.textbook) == ("similar_small", "classifier_only")
    low, high = (1e-3 * each for each in known.levels.rates["similar"])
    assert low <= result.optimizer["lr"] <= high
    log = (result.folder / "fourfold.log").read_text(encoding="utf-8")
    (line,) = [line for line in log.splitlines() if "quadrant=auto: lift" in line]
    assert "similar" in line
    assert "classifier_only" in line
    run(f"freeze={result.strategy}", f"optimizer.lr={result.optimizer['lr']}", *TINY, *outputs)
    assert [again.run_id for again in collect(tmp_path / "out")] == [result.run_id]


def test_weights_that_know_nothing_are_trained_whole_and_faster(tmp_path: Path) -> None:
    outputs = [weights(tmp_path, 0.0), f"paths.outputs={tmp_path / 'out'}"]
    run("quadrant=auto", *TINY, *outputs)
    (result,) = collect(tmp_path / "out")
    assert result.quadrant is not None
    assert (result.quadrant.name, result.strategy) == ("different_small", "full")
    assert result.optimizer["lr"] > 1e-3


def test_what_is_typed_beside_it_stays(tmp_path: Path) -> None:
    outputs = [weights(tmp_path, 0.0), f"paths.outputs={tmp_path / 'out'}"]
    run("quadrant=auto", "freeze=classifier_only", "optimizer.lr=2e-4", *TINY, *outputs)
    (result,) = collect(tmp_path / "out")
    assert (result.strategy, result.optimizer["lr"]) == ("classifier_only", 2e-4)
    assert result.quadrant is not None
    assert result.quadrant.name == "different_small"


def test_too_few_images_have_nothing_to_choose_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quadrant=auto", *TINY, "dataset.shots=3", weights(tmp_path, 1.0), f"paths.outputs={tmp_path / 'out'}"]
    assert cli.command(words) == cli.REFUSED
    assert "the lift is undefined" in capsys.readouterr().err


def test_in_a_sweep_every_cell_gets_its_own_and_all_seeds_the_same(tmp_path: Path) -> None:
    files = [weights(tmp_path, gate).partition("=")[2] for gate in (0.0, 1.0)]
    words = [*TINY, f"model.weights={','.join(files)}", "seed=0,1", f"paths.outputs={tmp_path / 'out'}", "study=s"]
    run("-m", "quadrant=auto", *words, "search.preflight=off")
    found = {(Path(each.config["model"]["weights"]).name, each.seed): each for each in collect(tmp_path / "out/s")}
    assert {key: each.strategy for key, each in found.items()} == {
        ("gate_0.0.pt", 0): "full",
        ("gate_0.0.pt", 1): "full",
        ("gate_1.0.pt", 0): "classifier_only",
        ("gate_1.0.pt", 1): "classifier_only",
    }
    assert len(read_json(tmp_path / "out/s" / _placing.FILE)) == 2


def test_a_searched_rate_is_cut_to_the_rates_of_the_place(known: Placement) -> None:
    space = {"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True), "optimizer.weight_decay": FloatDistribution(0, 1)}
    cell = Cell("c", ("quadrant=auto",), ({},), space, 3)
    (found,) = _placing.chosen([cell], lambda _: (compose([]), known))
    low, high = (1e-3 * each for each in known.levels.rates["similar"])
    assert found.space == {**space, "optimizer.lr": FloatDistribution(low, high, log=True)}
    assert not any(word.startswith("optimizer.lr=") for word in found.fixed)
    elsewhere = replace(cell, space={"optimizer.lr": FloatDistribution(1e-7, 1e-6, log=True)})
    (found,) = _placing.chosen([elsewhere], lambda _: (compose([]), known))
    assert found.space == elsewhere.space


def cells(*words: str) -> list[Cell]:
    """One for each text of overrides."""
    return [Cell(text.replace(" ", ","), tuple(text.split()), ({},), {}, 1) for text in words]


def test_models_come_by_what_their_features_tell_and_strategies_by_the_study(known: Placement) -> None:
    scores = {"resnet18": 0.1, "vgg16": 0.5}

    def place(cell: Cell) -> tuple:
        config = compose(cell.fixed)
        return config, replace(known, logme=scores[config.model.name], seconds=2.0)

    kinds = [(model, strategy) for model in scores for strategy in ("full", "lp_ft", "classifier_only")]
    given = cells(*(f"model={model} freeze={strategy} seed={seed}" for seed in (0, 1) for model, strategy in kinds))
    found = _placing.ordered(given, place, None)
    assert found is not None
    order = [
        (f"model={model}", f"freeze={strategy}")
        for model in ("vgg16", "resnet18")
        for strategy in ("classifier_only", "full", "lp_ft")
    ]
    assert [cell.fixed[:2] for cell in found.cells] == [kind for kind in order for _ in range(2)]
    assert (found.kinds, found.left_out, found.seconds) == (6, 0, 4.0)
    kept = _placing.ordered(given, place, 2)
    assert kept is not None
    assert kept.cells == found.cells[:4]
    assert kept.left_out == 8


def test_the_control_comes_last_and_the_suggested_first() -> None:
    for (similarity, size), evidence in EVIDENCE.items():
        first, *_, last = in_order(similarity, size)
        assert (first, last) == (evidence.suggested, "from_scratch")


def test_the_saving_counts_what_came_after_the_best_and_what_was_left_out() -> None:
    def trial(cell: str, value: float | None, seconds: float) -> TrialView:
        return TrialView(cell, 0, "done", (), value, None, seconds, 1, None, 0)

    ranks = {"a": 0, "b": 1, "c": 2}
    order = _placing.Order((), ranks, dict.fromkeys("abc", "digits"), kinds=4, left_out=5, seconds=3.0)
    text = _placing.saving(order, [trial("a", 0.5, 10), trial("b", 0.9, 10), trial("c", 0.7, 20), trial("c", None, 99)], 1)
    assert text is not None
    assert "number 2 of 4" in text
    assert "50% of the time" in text
    assert "5 runs were left out, which at 13.3 s each saved about 64 s" in text
    assert _placing.saving(order, [], 1) is None


def test_each_target_has_a_best_of_its_own() -> None:
    """Accuracies of two targets do not compare: the easier one would be the best wherever it stood."""
    ranks = {"easy a": 0, "easy b": 1, "hard a": 0, "hard b": 1}
    order = _placing.Order((), ranks, {cell: cell.split()[0] for cell in ranks}, kinds=2, left_out=0, seconds=1.0)
    values = {"easy a": 0.9, "easy b": 0.8, "hard a": 0.1, "hard b": 0.2}
    trials = [TrialView(cell, 0, "done", (), value, None, 10, 1, None, 0) for cell, value in values.items()]
    text = _placing.saving(order, trials, 1)
    assert text is not None
    assert "the best of each of the 2 targets are of numbers 1, 2 of 2" in text
    assert "25% of the time" in text


def test_a_sweep_keeps_the_better_network_and_says_what_it_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [weights(tmp_path, gate).partition("=")[2] for gate in (0.0, 1.0)]
    words = [*TINY, f"model.weights={','.join(files)}", "seed=0,1", "freeze=classifier_only", "search.preflight=off"]
    words += [f"paths.outputs={tmp_path / 'out'}", "study=s"]
    run("-m", *words, "search.warm_start=transferability", "search.keep=1")
    found = collect(tmp_path / "out/s")
    kept = [(Path(each.config["model"]["weights"]).name, each.seed) for each in found]
    assert kept == [("gate_1.0.pt", 0), ("gate_1.0.pt", 1)]
    told = capfd.readouterr()
    assert "2 runs were left out" in told.out + told.err + caplog.text


def test_keep_without_an_order_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.keep=1 keeps the first"):
        compose(["search.keep=1"])
    with pytest.raises(ConfigError, match=r"search\.keep=0"):
        compose(["search.keep=0", "search.warm_start=transferability"])
