"""Every option of every group composes, means something, and obeys the schema; what cannot run is refused in one sentence."""

import importlib.util
from pathlib import Path

import pytest

from fourfold import groups
from fourfold.compose import compose
from fourfold.config import ConfigError

OPTIONS = [(group, name) for group, options in groups.options((groups.conf_dir(),)).items() for name in options]
NEEDED = {  # what only the user can know, or what the default strategy does not go with
    ("dataset", "custom"): ["dataset._target_=mine.images"],
    ("model", "custom"): ["model._target_=mine.model"],
    ("model", "hf_hub"): ["model.name=owner/repo"],
    ("model", "timm"): ["model.name=resnet18"],
    ("model", "torchvision"): ["model.name=resnet18"],
    ("adapt", "adabn"): ["dataset.shots=5"],
    ("adapt", "coral"): ["dataset.shots=5", "freeze=full"],
    ("adapt", "dann"): ["dataset.shots=5", "freeze=full"],
    ("adapt", "mmd"): ["dataset.shots=5", "freeze=full"],
    ("regularizer", "bss"): ["freeze=full"],
    ("regularizer", "co_tuning"): ["freeze=full"],
    ("regularizer", "delta"): ["freeze=full"],
    ("regularizer", "feature_distillation"): ["freeze=full"],
    ("regularizer", "l2_sp"): ["freeze=full"],
    ("model", "torch_hub"): ["model.name=net", "model.repo=owner/name", "model.trust=true"],
}
NAMED = ("adapt", "freeze_strategy", "logger", "regularizer", "search", "transform", "debug")  # their options have a name


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes(group: str, name: str) -> None:
    composed = compose([f"{group}={name}", *NEEDED.get((group, name), [])])
    if group in NAMED:
        assert getattr(composed, group).name in (name, None)


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_opens_with_its_meaning(group: str, name: str) -> None:
    file = groups.options((groups.conf_dir(),))[group][name]
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line != "# @package _global_"]
    assert lines[0] == f"# {groups.meaning(file)}"
    assert len(groups.meaning(file)) > 10


@pytest.mark.parametrize(("option", "needed"), NEEDED.items())
def test_what_only_the_user_can_know_is_asked_for(option: tuple[str, str], needed: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["=".join(option)])
    assert needed[0].partition("=")[0] in str(refused.value)


@pytest.mark.parametrize("search", ["lr_grid", "lr_wd_grid"])
def test_a_grid_search_lists_learning_rates(search: str) -> None:
    from fourfold.multirun import plan

    swept = plan([f"search={search}"]).overrides
    assert any(override.startswith("optimizer.lr=") and override.count(",") == 4 for override in swept)


def test_overfitting_is_not_held_back() -> None:
    config = compose(["debug=overfit", "model=resnet18", "freeze=full", "transform=mixup", "optimizer.weight_decay=0.1"])
    assert config.trainer.overfit
    assert config.scheduler.name == "constant"
    assert compose(["debug=overfit"]).optimizer.weight_decay == 0


# One sentence per kind of mistake: (overrides, what the sentence has to say).
REFUSED = [
    (["optimizer.lrr=1"], ["optimizer.lrr=1", "weight_decay", "did you mean optimizer.lr?"]),
    (["+optimizer.lrr=1"], ["optimizer.lrr=1", "did you mean optimizer.lr?"]),
    (["++nonsense=1"], ["nonsense=1", "names no key or group"]),
    (["lr=0.1"], ["lr=0.1", "did you mean optimizer.lr?"]),
    (["epochs=3"], ["epochs=3", "did you mean trainer.epochs?"]),
    (["trainer.loss.nam=focal"], ["trainer.loss.nam=focal", "label_smoothing", "did you mean trainer.loss.name?"]),
    (["optimiser=sgd"], ["optimiser=sgd", "scheduler", "did you mean optimizer?"]),
    (["~optimizr"], ["~optimizr", "did you mean optimizer?"]),
    (["optimizer=sgdd"], ["optimizer=sgdd", "adamw, lbfgs, sgd", "did you mean sgd?"]),
    (["freeze=fulll"], ["freeze=fulll", "lp_ft", "did you mean full?"]),
    (["experiment=pretrain_embeded"], ["experiment=pretrain_embeded", "did you mean pretrain_embedded?"]),
    (["debug=smok"], ["debug=smok", "did you mean smoke?"]),
    (["optimizer=null"], ["optimizer=null", "adamw, lbfgs, sgd"]),
    (["trainer=3"], ["trainer=3", "default"]),
    (["seed=x"], ["seed=x", "a whole number"]),
    (["seed="], ["seed=", "a whole number"]),
    (["trainer.epochs=1.5"], ["trainer.epochs=1.5", "a whole number"]),
    (["trainer.progress=maybe"], ["trainer.progress=maybe", "true or false"]),
    (["dataset.train_size=few"], ["dataset.train_size=few", "a whole number or null"]),
    (["model.mean=[a]"], ["model.mean=[a]", "a list such as [0.5, 0.75] or null"]),
    (["optimizer.kwargs=3"], ["optimizer.kwargs=3", "keys in braces"]),
    (["seed.x=1"], ["seed.x=1", "seed has no such key", "seed=VALUE"]),
    (["dataset.kwargs.foo=1"], ["dataset.kwargs.foo=1", "+dataset.kwargs.foo=1"]),
    (["dataset.name=???"], ["dataset.name", "has no value"]),
    (["~freeze"], ["freeze_strategy.name", "has no value"]),
    (["~seed"], ["seed has no value: give seed=VALUE"]),
    (["seed=???"], ["seed has no value: give seed=VALUE"]),
    (["seed=${seed}"], ["seed refers to itself: give seed=VALUE"]),
    (["~study"], ["study has no value: give study=VALUE"]),
    (["~optimizer.lr"], ["~optimizer.lr", "without a value"]),
    (["paths.data=${paths.dat}"], ["${paths.dat}", "did you mean paths.data?"]),
    (["hydra.sweper.x=1"], ["hydra.sweper", "fourfold --cfg hydra"]),
    (["train"], ["'train'", "neither a command nor KEY=VALUE"]),
    (["seed=[1"], ["seed=[1", "quote"]),
    (["seed=0,1"], ["seed=0,1", "add -m"]),
    (["model.mean=0.5,0.5"], ["add -m", "model.mean=[0.5,0.5]"]),
    (["freeze=full", "freeze_strategy=full"], ["name the same option; give one of them"]),
    (["trainer.precision=fp8"], ["trainer.precision=fp8", "bf16", "did you mean fp32?"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
    (["adapt=corall"], ["adapt=corall", "did you mean coral?"]),
    (["adapt=adabn"], ["adapt=adabn", "adapt.images", "dataset.shots"]),
    (["adapt=coral", "dataset.shots=5"], ["adapt=coral", "freeze=classifier_only trains the head alone", "adapt=adabn"]),
    (["adapt=adabn", "dataset.shots=5", "dataset.loader.collate=pad"], ["collate=pad", "stack or resize"]),
    (["regularizer=l2_spp"], ["regularizer=l2_spp", "did you mean l2_sp?"]),
    (["regularizer=l2_sp"], ["freeze=classifier_only trains the head alone", "freeze=full"]),
    (["regularizer=l2_sp", "freeze=from_scratch"], ["freeze=from_scratch", "random", "regularizer=none"]),
    (["regularizer=l2_sp", "freeze=full", "optimizer.weight_decay=0.1"], ["optimizer.weight_decay=0.1", "head_weight"]),
    (["regularizer=bss", "freeze=full", "trainer.compile=true"], ["regularizer=bss", "trainer.compile=false"]),
    (["freeze=lora", "freeze_strategy.trainable=all"], ["adapter.kind=lora", "trainable=all", "head, norm or bias"]),
    (["freeze=lora", "freeze_strategy.adapter.rank=0"], ["adapter.rank=0", "1 or more"]),
    (["regularizer=delta", "freeze=full", "dataset.task=regression"], ["regularizer=delta", "attention_images=0"]),
    (["regularizer=bss", "freeze=full", "regularizer.smallest=0"], ["regularizer.smallest=0", "1 or more"]),
    (["dataset.shots=5", "dataset.fraction=0.5"], ["dataset.shots=5", "dataset.fraction=0.5", "give one of them"]),
]


@pytest.mark.parametrize(("overrides", "said"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_a_mistake_is_told_in_one_sentence(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(overrides)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert [words for words in said if words not in sentence] == [], sentence


FILES = [
    ("lrr: 1", ["in optimizer/mine.yaml", "optimizer.lrr", "did you mean optimizer.lr?"]),
    ("lr: fast", ["in optimizer/mine.yaml", "optimizer.lr=fast", "a number"]),
    ("name: sgd\nlr: ${optimizer.lrr}", ["${optimizer.lrr}", "did you mean optimizer.lr?"]),
    ("lr: [1, 2", ["mine.yaml", "line"]),
    ("defaults: [sgdd]", ["in optimizer/mine.yaml", "sgdd"]),
    ("name: sgd", ["optimizer.lr", "has no value"]),
]


@pytest.mark.parametrize(("text", "said"), FILES)
def test_a_mistake_in_a_file_of_the_user_names_the_file(tmp_path: Path, text: str, said: list[str]) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/mine.yaml").write_text(f"# mine\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        compose(["optimizer=mine"], tmp_path)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert [words for words in said if words not in sentence] == [], sentence


def test_an_experiment_that_overrides_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\n# mine\ndefaults:\n  - override /optimiser: sgd\n")
    with pytest.raises(ConfigError, match=r"in experiment/mine.yaml: optimiser .*did you mean optimizer\?"):
        compose(["experiment=mine"], tmp_path)


def test_the_reference_says_what_the_files_say() -> None:
    path = groups.conf_dir().parent / "scripts/write_reference.py"
    spec = importlib.util.spec_from_file_location("write_reference", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.filled(page) == page, "run `python scripts/write_reference.py`"
