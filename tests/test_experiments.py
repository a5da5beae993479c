"""Every quadrant and every experiment composes, says what it is, and runs two batches."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fourfold import groups, identity
from fourfold.compose import compose, composed, start_of
from fourfold.config import RunConfig
from fourfold.files import read_json
from fourfold.task import execute

OPTIONS = groups.options((groups.conf_dir(),))
QUADRANTS = sorted(set(OPTIONS["quadrant"]) - {"none", "auto"})
EXPERIMENTS = sorted(OPTIONS["experiment"])
EMBEDDED = [name for name in QUADRANTS if "/" not in name]
REPRODUCE = [name for name in EXPERIMENTS if name.startswith("reproduce/")]
STUDIES = [name for name in EXPERIMENTS if name.startswith("quadrants")]
TEXTBOOK = {
    ("similar", "small"): "classifier_only",
    ("similar", "large"): "last_blocks",
    ("middle", "small"): "classifier_only",
    ("middle", "large"): "last_blocks",
    ("different", "small"): None,  # "unsuitable" names no strategy
    ("different", "large"): "full",
}
# The small backbone on noise, in place of what would have to be downloaded.
OFFLINE = [
    "model=micro_resnet", "dataset=fake", "dataset.kwargs.image_size=32", "dataset.shots=2", "dataset.val_size=20",
    "dataset.loader.num_workers=0", "dataset.loader.persistent_workers=false", "trainer.batch_size=8",
]  # fmt: skip


def smoke(outputs: Path, *overrides: str) -> tuple[RunConfig, dict[str, Any]]:
    """Two batches of a run as the door would make it."""
    overrides = (
        *overrides, "debug=smoke", "logger=none", "trainer.progress=false", "trainer.device=cpu", "trainer.threads=1",
        "trainer.precision=fp32", f"paths.outputs={outputs}",
    )  # fmt: skip
    config = compose(overrides)
    return config, execute(config, outputs / config.study / identity.folder_name(asdict(config)), overrides)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Shared by the module, so that the backbone is pretrained (for two batches) once."""
    return tmp_path_factory.mktemp("outputs")


def params(experiment: str) -> dict[str, list[str]]:
    """What an experiment sweeps."""
    swept = composed([f"experiment={experiment}"]).hydra.sweeper.params
    return {key: [value.strip() for value in str(values).split(",")] for key, values in swept.items()}


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_a_quadrant_is_a_size_a_similarity_and_the_textbook_s_strategy(quadrant):
    config = compose([f"quadrant={quadrant}"])
    label = config.quadrant
    assert quadrant.rpartition("/")[2].startswith(label.name)
    assert label.name == f"{label.similarity}_{label.size}"
    assert label.textbook == TEXTBOOK[label.similarity, label.size]
    assert label.textbook in (None, config.freeze_strategy.name)
    assert config.dataset.shots == 5 if label.size == "small" else config.dataset.shots >= 80


@pytest.mark.parametrize("similarity", ["similar", "middle", "different"])
def test_small_and_large_differ_in_size_and_budget_only(similarity):
    small, large = (asdict(compose([f"quadrant={similarity}_{size}", "freeze=full"])) for size in ("small", "large"))
    for config in (small, large):
        config["dataset"].pop("shots")
        config.pop("quadrant")
        for key in ("epochs", "batch_size", "val_every"):
            config["trainer"].pop(key)
        config["scheduler"].pop("warmup_epochs")
    assert small == large


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_the_command_line_wins_over_a_quadrant(quadrant):
    config = compose([f"quadrant={quadrant}", "model=vgg16", "freeze=lp_ft", "dataset.shots=7", "trainer.epochs=3"])
    assert (config.model.name, config.freeze_strategy.name, config.dataset.shots) == ("vgg16", "lp_ft", 7)
    assert config.trainer.epochs == 3


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_its_command(experiment):
    text = OPTIONS["experiment"][experiment].read_text(encoding="utf-8")
    sweep = "-m " if "    params:" in text else ""
    command = f"verify {experiment} --run" if experiment in REPRODUCE else f"{sweep}experiment={experiment}"
    assert f"# fourfold {command}" in text


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_crosses_strategies_and_quadrants_that_exist(study):
    swept = params(study)
    assert {"classifier_only", "last_blocks", "full", "from_scratch"} <= set(swept["freeze_strategy"])
    assert set(swept["quadrant"]) <= set(QUADRANTS)
    assert compose([f"experiment={study}"]).study == study


def test_the_embedded_study_shows_every_target_it_has():
    assert set(params("quadrants_embedded")["quadrant"]) == set(EMBEDDED)


def test_all_runs_of_a_study_start_from_one_backbone():
    folders = {
        start.folder
        for quadrant in params("quadrants_embedded")["quadrant"]
        for strategy in ("classifier_only", "last_blocks", "full")
        if (start := start_of(compose(["experiment=quadrants_embedded", f"quadrant={quadrant}", f"freeze={strategy}"])))
    }
    assert len(folders) == 1


def test_from_scratch_waits_for_no_backbone():
    assert start_of(compose(["experiment=quadrants_embedded", "freeze=from_scratch"])) is None


@pytest.mark.parametrize("quadrant", EMBEDDED)
def test_an_embedded_quadrant_starts_from_the_study_s_backbone_and_tests_once(quadrant, outputs):
    _, result = smoke(outputs, "experiment=quadrants_quick", f"quadrant={quadrant}")
    assert result["status"] == "finished"
    assert result["test_opened"] == 1
    assert result["config"]["quadrant"]["name"] == quadrant
    assert len(result["classes"]) == 10
    assert Path(result["config"]["model"]["weights"]).parent.parent == outputs / "pretrained"


@pytest.mark.parametrize("quadrant", [name for name in QUADRANTS if "/" in name])
def test_an_imagenet_quadrant_runs_on_a_stand_in(quadrant, outputs):
    _, result = smoke(outputs, f"quadrant={quadrant}", *OFFLINE, "model.weights=experiment:pretrain_embedded_quick")
    assert result["status"] == "finished"


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in REPRODUCE])  # see test_verify.py
def test_an_experiment_runs_two_batches(experiment, outputs):
    stand_in = OFFLINE if experiment == "quadrants_imagenet" else []
    _, result = smoke(outputs, f"experiment={experiment}", *stand_in)
    assert result["status"] == "finished"
    assert result["epochs"] == 1


def test_seeds_change_the_training_images_and_never_the_test(outputs):
    manifests = []
    for seed in (0, 1):
        config, _ = smoke(outputs, "quadrant=similar_small", "freeze=from_scratch", f"seed={seed}")
        manifests.append(read_json(outputs / config.study / identity.folder_name(asdict(config)) / "manifest.json"))
    first, second = manifests
    assert first["test"] == second["test"]
    assert first["train"] != second["train"]
    assert first["val"] != second["val"]
    assert len(first["train"]["indices"]) == 50
