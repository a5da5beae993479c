"""One spelling of every choice, one start for all runs of a study, and a Hydra that others use is left as it was."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fourfold import multirun
from fourfold.compose import canonical, compose, composed, explained, settled, start_of, to_run_config
from fourfold.config import ConfigError, RunConfig
from fourfold.groups import conf_dir
from fourfold.identity import folder_name, run_id

BOTH_NAMES = pytest.mark.parametrize("name", ["freeze", "freeze_strategy"])
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Puts an option into a user's own folder, and gives that folder."""

    def file(option: str, text: str) -> Path:
        path = tmp_path / "my_conf" / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        package = "# @package _global_\n" if option.startswith("experiment/") else ""
        path.write_text(f"{package}# mine\n{text}\n")
        return tmp_path / "my_conf"

    return file


def identity(config: RunConfig) -> str:
    return run_id(asdict(config))


def test_what_is_composed_from_what_was_composed_before_is_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.5")
    first = ["freeze=full", "optimizer=adamw", "dataset=digits"]
    for words in (
        first,
        [*first, "seed=3"],
        [*first, "seed=3", "seed=4", "optimizer.lr=${oc.env:RATE}"],
        [*first, "optimizer.kwargs.fused=false", "+optimizer.kwargs.amsgrad=true"],
        ["freeze=last_blocks", "freeze_strategy.blocks=2", "quadrant=similar_small", "quadrant.textbook=null"],
        ["freeze=last_blocks", "freeze_strategy.blocks=3", "quadrant=similar_small", "quadrant.textbook=full"],
        ["experiment=quadrants_quick", "trainer.epochs=3"],
        ["experiment=quadrants_quick", "trainer.epochs=5", "hydra.job.name=x"],
    ):
        assert compose(words) == to_run_config(composed(canonical(words))), words
    monkeypatch.setenv("RATE", "0.25")
    assert compose([*first, "optimizer.lr=${oc.env:RATE}"]).optimizer.lr == 0.25
    for wrong in ("seed=x", "seed=1,2", "seeds=1", "optimizer.lr=${nowhere}", "freeze=fully", "~seed"):
        with pytest.raises(ConfigError) as ours:
            compose([*first, wrong])
        with pytest.raises(ConfigError) as hydras, explained([*first, wrong]):
            to_run_config(composed(canonical([*first, wrong])))
        assert str(ours.value) == str(hydras.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("freeze=full", "freeze_strategy=full"),
        ("+freeze=full", "+freeze_strategy=full"),
        ("++freeze=full", "++freeze_strategy=full"),
        ("~freeze", "~freeze_strategy"),
        ("~freeze=full", "~freeze_strategy=full"),
        ("freeze@second=full", "freeze_strategy@second=full"),
        ("freeze=full,lp_ft", "freeze_strategy=full,lp_ft"),
        ("freeze.blocks=2", "freeze_strategy.blocks=2"),
        ("freeze_strategy=full", "freeze_strategy=full"),
        ("freezer=full", "freezer=full"),
        ("dataset.kwargs.freeze=1", "dataset.kwargs.freeze=1"),
        ("study=freeze=full", "study=freeze=full"),
    ],
)
def test_the_short_name_is_written_out(typed: str, meant: str) -> None:
    assert canonical([typed]) == [meant]


@pytest.mark.parametrize("typed", [["freeze=full", "freeze_strategy=full"], ["~freeze", "+freeze_strategy=full"]])
def test_both_names_at_once_are_refused(typed: list[str]) -> None:
    with pytest.raises(ConfigError, match="name the same option; give one of them"):
        canonical(typed)


def test_a_value_beside_a_choice_is_not_both_names() -> None:
    assert compose(["freeze_strategy=last_blocks", "freeze.blocks=2"]).freeze_strategy.blocks == 2


def test_both_names_compose_the_same_run() -> None:
    assert compose(["freeze=lp_ft"]) == compose(["freeze_strategy=lp_ft"])
    assert compose(["freeze=lp_ft"]) != compose([])


@BOTH_NAMES
@pytest.mark.parametrize("typed", ["freeze", "freeze_strategy"])
def test_the_command_line_wins_over_an_experiment_by_either_name(write: Write, name: str, typed: str) -> None:
    mine = write("experiment/mine", f"defaults:\n  - override /{name}: full")
    assert compose(["experiment=mine"], mine).freeze_strategy.name == "full"
    assert compose(["experiment=mine", f"{typed}=lp_ft"], mine).freeze_strategy.name == "lp_ft"


@BOTH_NAMES
def test_an_option_of_the_user_has_both_names(write: Write, name: str) -> None:
    write("experiment/mine", f"defaults:\n  - override /{name}: mine")
    mine = write("freeze_strategy/mine", "name: mine\ntrainable: bias\nbackbone_lr_mult: 0.25")
    for overrides in ([f"{name}=mine"], ["experiment=mine"]):
        assert compose(overrides, mine).freeze_strategy.backbone_lr_mult == 0.25
    assert multirun.plan(canonical([f"{name}=mine,full"]), [mine]).overrides[0] == "freeze_strategy=mine,full"


@BOTH_NAMES
@pytest.mark.parametrize("typed", ["freeze", "freeze_strategy"])
def test_a_swept_key_is_one_dimension_and_the_command_line_wins(write: Write, name: str, typed: str) -> None:
    mine = write("experiment/mine", f"hydra: {{sweeper: {{params: {{{name}: 'full,lp_ft', seed: '0,1'}}}}}}")
    assert multirun.plan(["experiment=mine"], [mine]).overrides[:2] == ["freeze_strategy=full,lp_ft", "seed=0,1"]
    overrides = multirun.plan(canonical(["experiment=mine", f"{typed}=bias_only,norm_only"]), [mine]).overrides
    assert [each for each in overrides if "freeze" in each and "study" not in each] == ["freeze_strategy=bias_only,norm_only"]
    assert "seed=0,1" in overrides


def test_an_experiment_cannot_sweep_both_names(write: Write) -> None:
    mine = write("experiment/mine", "hydra: {sweeper: {params: {freeze: 'full,lp_ft', freeze_strategy: 'full'}}}")
    with pytest.raises(ConfigError, match="name the same option"):
        multirun.plan(["experiment=mine"], [mine])


def test_every_value_of_a_sweep_is_checked_before_it_starts() -> None:
    with pytest.raises(ConfigError, match=r"lr=0.0 is not a positive number"):
        multirun.plan(["seed=0,1", "optimizer.lr=1e-3,0", "freeze=classifier_only,full"])


def test_a_sweep_without_a_name_gets_one_that_the_same_command_finds_again() -> None:
    def folder(*overrides: str) -> str:
        (one,) = multirun.plan(overrides).folders
        assert one.parent == Path("outputs")
        return one.name

    name = folder("optimizer.lr=1e-3,1e-2", "seed=0,1")
    assert name.startswith("lr-seed-")
    assert folder("seed=0,1", "optimizer.lr=1e-3,1e-2") == name
    assert folder("optimizer.lr=1e-3,1e-2", "seed=0,1", "hydra/launcher=joblib") == name
    assert folder("optimizer.lr=1e-3,1e-2", "seed=0,1,2") != name
    assert folder("optimizer.lr=1e-3,1e-2", "seed=0,1", "study=mine") == "mine"


def test_an_experiment_may_name_its_study(write: Write) -> None:
    mine = write("experiment/mine", "study: theirs")
    assert multirun.plan(["experiment=mine", "seed=0,1"], [mine]).folders == (Path("outputs/theirs"),)


def test_a_running_hydra_is_left_as_it_was() -> None:
    with initialize_config_dir(str(conf_dir()), job_name="theirs", version_base="1.3"):
        running = GlobalHydra.instance().hydra
        compose(["freeze=full"])
        with pytest.raises(ConfigError):
            compose(["optimizer=sgdd"])
        assert GlobalHydra.instance().hydra is running
    compose(["freeze=full"])
    assert not GlobalHydra.instance().is_initialized()


def test_a_config_without_the_schema_is_refused() -> None:
    bare = OmegaConf.create(asdict(compose()))
    with pytest.raises(ConfigError, match="begin the defaults list"):
        to_run_config(bare)


def test_everything_is_resolved() -> None:
    config = compose(["paths.data=/somewhere"])
    assert config.dataset.root == "/somewhere"
    assert "${" not in repr(config)


LETTERS = (
    "defaults:\n  - override /dataset: glyphs\n  - override /freeze: from_scratch\nmodel: {weights: null}\ntrainer: {epochs: 3}"
)


def test_a_run_knows_the_run_it_starts_from(write: Write) -> None:
    mine = write("experiment/letters", LETTERS)
    config = compose(["model.weights=experiment:letters", "paths.outputs=out", "paths.data=d", "trainer.device=cpu"], mine)
    start = start_of(config, [mine])
    assert start is not None
    assert start.config.dataset.name == "glyphs"
    assert start.config.dataset.root == "d"
    assert start.config.trainer.epochs == 3
    assert start.config.trainer.device == "cpu"
    assert not start.config.logger.wandb.enabled
    assert start.folder == Path("out/pretrained") / folder_name(asdict(start.config))
    assert settled(config, [mine]).model.weights == str(start.folder / "best.pt")


def test_another_start_is_another_run_but_where_it_lies_is_not(write: Write) -> None:
    overrides = ["model.weights=experiment:letters"]
    mine = write("experiment/letters", LETTERS)
    before = identity(settled(compose(overrides, mine), [mine]))
    assert identity(settled(compose([*overrides, "paths.outputs=elsewhere"], mine), [mine])) == before
    write("experiment/words", LETTERS.replace("epochs: 3", "epochs: 4"))
    assert identity(settled(compose(["model.weights=experiment:words"], mine), [mine])) != before


def test_all_strategies_of_a_study_share_one_start(write: Write) -> None:
    mine = write("experiment/letters", LETTERS)
    points = (["freeze=full"], ["freeze=classifier_only", "seed=3"], ["dataset=textures", "optimizer.lr=0.1", "logger=all"])
    starts = (start_of(compose(["model.weights=experiment:letters", *point], mine), [mine]) for point in points)
    assert len({start.folder for start in starts if start}) == 1


def test_a_run_from_scratch_starts_from_nothing(write: Write) -> None:
    mine = write("experiment/letters", LETTERS)
    config = compose(["model.weights=experiment:letters", "freeze=from_scratch"], mine)
    assert start_of(config, [mine]) is None
    assert settled(config, [mine]) == config


def test_a_smoke_run_starts_from_smoke(write: Write) -> None:
    mine = write("experiment/letters", LETTERS)
    start = start_of(compose(["model.weights=experiment:letters", "debug=smoke"], mine), [mine])
    assert start is not None
    assert start.config.trainer.limit_train_batches == 2


def test_starts_may_form_a_chain_but_not_a_ring(write: Write) -> None:
    write("experiment/letters", LETTERS)
    mine = write("experiment/words", "defaults:\n  - override /freeze: full\nmodel: {weights: 'experiment:letters'}")
    start = start_of(compose(["model.weights=experiment:words"], mine), [mine])
    assert start is not None
    assert start.config.model.weights == "experiment:letters"
    mine = write("experiment/ring", "defaults:\n  - override /freeze: full\nmodel: {weights: 'experiment:ring'}")
    with pytest.raises(ConfigError, match="starts from itself"):
        start_of(compose(["model.weights=experiment:ring"], mine), [mine])


def test_the_folder_of_a_run_is_the_same_for_hydra_and_for_plain_objects(write: Write) -> None:
    mine = write("experiment/letters", LETTERS)
    overrides = ["model.weights=experiment:letters", "freeze_strategy=full", "seed=4"]
    job = composed(overrides, [mine])
    expected = folder_name(asdict(settled(compose(overrides, mine), [mine])))
    assert job.hydra.sweep.subdir == expected
    assert job.hydra.run.dir == f"outputs/runs/{expected}"
