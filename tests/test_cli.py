"""The one door: what it starts, where that lies, what it prints, and how it says no."""

import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fourfold
from fourfold import cli
from fourfold.compose import compose
from fourfold.config import ConfigError, RunConfig
from fourfold.identity import run_id
from fourfold.task import RunFailed, execute

HEAVY = ("torch", "torchvision", "timm", "wandb", "torchmetrics", "matplotlib", "numpy", "scipy", "sklearn")
Door = Callable[..., int]


class Runs(list[tuple[RunConfig, Path]]):
    """Stands in for `fourfold.run`: keeps what would be run, and fails where it is told to."""

    fail_on: Callable[[RunConfig], BaseException | None] = staticmethod(lambda config: None)

    def run(
        self,
        config: RunConfig,
        folder: Path,
        overrides: tuple[str, ...] = (),
        *,
        run_id: str,
        trial: object = None,
        **company: object,
    ) -> dict[str, Any]:
        self.append((config, folder))
        error = self.fail_on(config)
        if error is not None:
            raise error
        metrics = {"train": {"loss": 1.0}, "val": {"acc": 0.5}, "test": {"acc": 0.5}}
        result = {"run_id": run_id, "overrides": overrides, "best_epoch": 0, "metrics": metrics, "seconds": 1.0, "params": {}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result))
        return result


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stand_in = Runs()
    module = types.ModuleType("fourfold.run")
    module.run = stand_in.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fourfold.run", module)
    return stand_in


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Studies for which a report was asked for."""
    import fourfold.report as module
    from fourfold.report import status

    asked: list[Path] = []
    monkeypatch.setattr(module, "finish", asked.append)
    monkeypatch.setattr(module, "build", lambda folder, form: folder / f"report.{form}")
    monkeypatch.setattr(status, "show", lambda folder, trials: None)
    return asked


@pytest.fixture
def door(runs: Runs, finished: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Door:
    """The command line, in an empty folder, with nothing really run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.setattr(sys, "argv", ["fourfold"])
    return lambda *args: cli.command([*args, *(["search.preflight=off"] if "-m" in args else [])])


PLAIN = ("model=resnet18", "logger=none")


def test_a_run_gets_its_config_and_its_folder(door: Door, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    assert door(*PLAIN, "freeze=full", "optimizer.lr=0.01") == 0
    ((config, folder),) = runs
    assert (config.freeze_strategy.name, config.optimizer.lr) == ("full", 0.01)
    assert folder.parent == Path.cwd() / "outputs/runs"
    assert (folder / ".hydra/overrides.yaml").read_text().split("\n")[2] == "- freeze_strategy=full"
    out, err = capfd.readouterr()
    assert out.startswith("test: acc 0.5")
    assert err == ""


def test_the_same_run_finds_its_own_folder(door: Door, runs: Runs) -> None:
    door(*PLAIN, "freeze=full")
    door("freeze_strategy=full", *PLAIN, "trainer.device=cpu", "paths.data=elsewhere")
    door(*PLAIN, "freeze=full", "seed=1")
    first, same, other = (folder for _, folder in runs)
    assert first == same != other


def test_the_identity_in_the_result_is_that_of_the_folder(door: Door, runs: Runs) -> None:
    door(*PLAIN)
    result = json.loads((runs[0][1] / "result.json").read_text())
    assert runs[0][1].name.endswith(result["run_id"])


def test_a_sweep_shares_a_study_and_is_reported(door: Door, runs: Runs, finished: list[Path]) -> None:
    assert door("-m", *PLAIN, "freeze=full,lp_ft", "seed=0,1", "study=mine") == 0
    assert len({folder for _, folder in runs}) == 4
    assert {folder.parent for _, folder in runs} == {Path.cwd() / "outputs/mine"}
    assert [(config.freeze_strategy.name, config.seed) for config, _ in runs] == [
        ("full", 0), ("full", 1), ("lp_ft", 0), ("lp_ft", 1)
    ]  # fmt: skip
    assert finished == [Path("outputs/mine")]


def test_flags_and_overrides_may_stand_in_any_order(door: Door, runs: Runs) -> None:
    assert door("seed=0,1", *PLAIN, "-m", "study=mine") == 0
    assert len(runs) == 2


def test_a_failed_run_is_told_in_one_line(door: Door, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    runs.fail_on = lambda config: RuntimeError("no more\nmemory")
    assert door(*PLAIN) == 1
    out, err = capfd.readouterr()
    assert err.startswith("fourfold: RuntimeError: no more memory (the whole story: outputs/runs/")
    assert err.count("\n") == 1
    assert out == ""
    assert "Traceback" in (runs[0][1] / "fourfold.log").read_text()


def test_what_the_model_refuses_is_refused(door: Door, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    runs.fail_on = lambda config: ConfigError("freeze_strategy.blocks=7, but resnet18 has 5 blocks")
    assert door(*PLAIN) == 2
    assert capfd.readouterr().err == "fourfold: freeze_strategy.blocks=7, but resnet18 has 5 blocks\n"


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), SystemExit(3), ConfigError("7 blocks")])
def test_a_failed_run_does_not_end_the_sweep_and_the_policy_decides_what_it_means(
    door: Door,
    runs: Runs,
    finished: list[Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    runs.fail_on = lambda config: error if config.seed == 0 else None
    sweep = ("-m", *PLAIN, "seed=0,1,2", "study=mine")
    assert door(*sweep) == 0
    assert len(runs) == 3
    assert finished == [Path("outputs/mine")]
    assert capfd.readouterr().err.startswith(f"fourfold: {runs[0][1].name}: ")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    assert door(*sweep, "search.max_failure_rate=0") == 1
    assert [config.seed for config, _ in runs[3:]] == [0]  # the same study: what is done is not done again
    assert capfd.readouterr().err.endswith("fourfold: 1 of 3 runs failed: `fourfold status outputs/mine` says why\n")


@pytest.mark.parametrize("batch", ["null", "1"])
def test_hydras_own_sweeper_is_there_for_who_wants_it(
    door: Door, runs: Runs, finished: list[Path], capfd: pytest.CaptureFixture[str], batch: str
) -> None:
    runs.fail_on = lambda config: RuntimeError("out of luck") if config.seed == 0 else None
    basic = ("hydra/sweeper=basic", f"hydra.sweeper.max_batch_size={batch}")
    assert door("-m", *PLAIN, "seed=0,1,2", "study=mine", *basic) == 1
    assert len(runs) == 3
    assert finished == [Path("outputs/mine")]
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:] == ["fourfold: 1 of 3 runs failed: the same command runs them again, and nothing else"]


def test_ctrl_c_ends_a_sweep_with_a_report_of_what_there_is(
    door: Door, runs: Runs, finished: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    runs.fail_on = lambda config: KeyboardInterrupt("stopped and saved at epoch 3") if config.seed == 1 else None
    assert door("-m", *PLAIN, "seed=0,1,2", "study=mine") == 130
    assert len(runs) == 2
    assert finished == [Path("outputs/mine")]
    assert capfd.readouterr().err == "fourfold: stopped and saved at epoch 3\n"


def test_nothing_starts_when_one_value_of_a_sweep_cannot_run(
    door: Door, runs: Runs, finished: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert door("-m", *PLAIN, "seed=0,1", "freeze=full,lp_tf") == 2
    assert (runs, finished) == ([], [])
    assert not Path("outputs").exists()
    assert capfd.readouterr().err.startswith("fourfold: freeze=lp_tf is not an option of freeze_strategy (")


def test_a_refused_config_leaves_no_folder(door: Door, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    assert door(*PLAIN, "trainer.precision=fp8") == 2
    assert not Path("outputs").exists()
    err = capfd.readouterr().err
    assert err == "fourfold: trainer.precision=fp8 is not one of fp32, bf16, fp16, auto, did you mean fp32?\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EROFS, "Read-only file system", "away/runs/x/.config.json.1.tmp"), True),
        (PermissionError(errno.EACCES, "Permission denied", "away/runs/x"), True),
        (OSError(errno.ENOSPC, "No space left on device", "away/runs/x"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file", "away/runs/x"), False),  # of ours, so it keeps its traceback
    ],
)
def test_a_folder_that_is_closed_is_told_in_a_sentence(
    door: Door, error: OSError, told: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import fourfold.report as module

    def build(folder: Path, form: str) -> Path:
        raise error

    monkeypatch.setattr(module, "build", build)
    Path("study").mkdir()
    if not told:
        with pytest.raises(type(error)):
            door("report", "study")
        return
    assert door("report", "study") == 2
    err = capfd.readouterr().err
    assert err.startswith(f"fourfold: {Path(error.filename).parent} cannot be used ({error.strerror}): make room or")
    assert err.count("\n") == 1


def test_tracebacks_are_there_for_who_asks(door: Door, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    runs.fail_on = lambda config: ZeroDivisionError("deep down")
    with pytest.raises(RunFailed) as failed:
        door(*PLAIN)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


def test_one_run_of_an_experiment_that_sweeps_says_so(door: Door, runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    assert door(*PLAIN, "search=lr") == 0
    assert len(runs) == 1
    assert capfd.readouterr().err == "fourfold: this is one run: add -m to run every value of optimizer.lr\n"


@pytest.fixture
def mine(tmp_path: Path) -> str:
    for option, text in {
        "freeze_strategy/mine": "# mine\nname: mine\ntrainable: bias",
        "experiment/letters": "# @package _global_\n# mine\ndefaults: [override /freeze: from_scratch]\nmodel: {weights: null}",
        "experiment/words": "# @package _global_\n# mine\nmodel: {weights: 'experiment:letters'}\nstudy: words",
    }.items():
        path = tmp_path / "my_conf" / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(tmp_path / "my_conf")


@pytest.mark.parametrize("name", ["freeze", "freeze_strategy"])
def test_options_of_the_user_run_and_sweep(door: Door, runs: Runs, mine: str, name: str) -> None:
    assert door("--config-dir", mine, *PLAIN, f"{name}=mine") == 0
    assert door("-m", "--config-dir", os.path.relpath(mine), *PLAIN, f"{name}=mine,full") == 0
    assert [config.freeze_strategy.name for config, _ in runs] == ["mine", "mine", "full"]


def test_an_option_of_the_user_cannot_hide_behind_ours(
    door: Door, runs: Runs, mine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (Path(mine) / "freeze_strategy/full.yaml").write_text("# mine\nname: full\n")
    assert door("--config-dir", mine, *PLAIN) == 2
    assert "full.yaml has the name of a built-in option" in capfd.readouterr().err


def test_a_run_is_preceded_once_by_the_run_it_starts_from(door: Door, runs: Runs, mine: str) -> None:
    assert door("-m", "--config-dir", mine, "experiment=words", "seed=0,1", "logger=none") == 0
    (start, folder), *others = runs
    assert start.freeze_strategy.name == "from_scratch"
    assert folder.parent == Path("outputs/pretrained")
    assert [config.model.weights for config, _ in others] == [str(folder / "best.pt")] * 2
    for config, where in others:
        assert where.name.endswith(run_id(asdict(config)))


def test_a_start_that_failed_fails_the_run_and_is_tried_again(door: Door, runs: Runs, mine: str) -> None:
    arguments = ("--config-dir", mine, "experiment=words", "logger=none")
    runs.fail_on = lambda config: RuntimeError("bad luck")
    assert door(*arguments) == 1
    runs.fail_on = lambda config: None
    assert door(*arguments) == 0
    assert [config.freeze_strategy.name for config, _ in runs] == ["from_scratch", "from_scratch", "classifier_only"]


def test_torchrun_does_not_make_a_start_on_the_way(
    door: Door, runs: Runs, mine: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert door("--config-dir", mine, "experiment=words", "logger=none") == 2
    assert "first run `fourfold experiment=letters` alone" in capfd.readouterr().err


def test_torchrun_starts_no_sweep(door: Door, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its process group serves one run: the second would wait for ever."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert door("-m", "seed=0,1") == 2
    assert "leave torchrun out, or -m" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train"], "`train` is neither a command nor KEY=VALUE"),
        (["report"], "give the folder of one"),
        (["report", "nowhere"], "give the folder of one"),
        (["--config-dir", "nowhere"], "--config-dir=nowhere is not a folder"),
        (["freeze=full", "freeze_strategy=full"], "give one of them"),
        (["-m", "freeze=full,lp_ft", "freeze_strategy=full"], "give one of them"),
        (["optimizer=sgd,adamw"], "add -m"),
        (["info", "optimizer=sgdd"], "did you mean sgd?"),
        (["verify", "kornblith12"], "did you mean reproduce/kornblith12?"),
        (["info", "quadrant=imagenet/similar_smal"], "quadrant=imagenet/similar_smal is not an option of quadrant ("),
        (["-m", "seed=0,1", "sweep.wrokers=2"], "sweep.wrokers=2 names no key of sweep (storage, workers, "),
        (["-m", "seed=0,1", "sweep.heads=0"], "sweep.heads=0 is not a number of heads to train at once, 1 or more"),
        (["-m", "seed=0,1", "sweep.workers=many"], "sweep.workers=many is not a number of processes"),
    ],
)
def test_a_command_that_cannot_be_is_refused(
    door: Door, runs: Runs, capfd: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    assert door(*args) == 2
    err = capfd.readouterr().err
    assert err.startswith("fourfold: ")
    assert said in err
    assert err.count("\n") == 1
    assert runs == []


def test_report_says_where_it_is(door: Door, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study").mkdir()
    assert door("report", "study") == 0
    assert capfd.readouterr().out == "study/report.html\n"


def test_help_names_every_option(door: Door, mine: str, capfd: pytest.CaptureFixture[str]) -> None:
    from fourfold.groups import conf_dir, meaning, options

    assert door("--help") == 0
    text = " ".join(capfd.readouterr().out.split())
    for group, files in options((conf_dir(),)).items():
        assert f" {group} " in text
        for name, file in files.items():
            assert f" {name} {' '.join(meaning(file).split())}" in text
    assert door("-h", "--config-dir", mine) == 0
    assert " letters mine " in " ".join(capfd.readouterr().out.split())


def test_the_examples_of_the_help_compose() -> None:
    from fourfold.compose import canonical, compose
    from fourfold.multirun import plan
    from fourfold.usage import EXAMPLES

    assert len(EXAMPLES) == 10
    for example in EXAMPLES:
        words = example.split()[1:]
        if "-m" in words:
            plan(canonical([word for word in words if word != "-m"]))
        elif words[:1] != ["report"]:
            compose([word for word in words if word != "info"])


LIGHT = {
    "help": (["--help"], "Most used values", (*HEAVY, "hydra", "omegaconf")),
    "short help": (["-h"], "Most used values", (*HEAVY, "hydra", "omegaconf")),
    "version": (["--version"], f"fourfold {fourfold.__version__}", (*HEAVY, "hydra", "omegaconf")),
    "cfg": (["--cfg", "job", "freeze=full", "seed=7"], "seed: 7", HEAVY),
    "cfg resolved": (["seed=7", "--cfg", "job", "--resolve"], "seed: 7", HEAVY),
    "info": (["--info", "defaults", "optimizer=sgd"], "optimizer/sgd", HEAVY),
    "completion": (["-sc", "query=bash"], "freeze=classifier_only", HEAVY),
    "completion script": (["-sc", "install=bash"], "hydra_bash_completion", HEAVY),
    "a mistake": (["optimizer=sgdd"], "did you mean sgd?", HEAVY),
}


@pytest.mark.parametrize(("args", "said", "absent"), LIGHT.values(), ids=LIGHT)
def test_looking_loads_nothing_heavy(args: list[str], said: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from fourfold.cli import command; command(sys.argv[1:]); "
        f"sys.exit(sorted(set({absent!r}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=os.environ | {"COMP_LINE": "fourfold freeze=cl"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout + done.stderr
    assert [*tmp_path.iterdir()] == []


def test_completion_knows_the_options_of_the_user(
    door: Door, mine: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", f"fourfold --config-dir {mine} freeze=m")
    assert door("-sc", "query=bash") == 0
    assert capfd.readouterr().out.split() == ["freeze=mine"]


def test_worker_processes_run_what_the_parent_would(tmp_path: Path) -> None:
    """Nothing is replaced here: two loky workers, a model of the user's own, and a start that both want at once."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes: int, pretrained: bool = False) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    letters = tmp_path / "my_conf/experiment/letters.yaml"
    letters.parent.mkdir(parents=True)
    letters.write_text(
        "# @package _global_\n# mine\n"
        "defaults: [override /freeze: from_scratch, override /dataset: fake, override /model: custom]\n"
        "dataset: {kwargs: {image_size: 8}}\n"
        "model: {name: net, _target_: mine.net, weights: null, image_size: 8, mean: [0, 0, 0], std: [1, 1, 1]}\n"
    )
    words = [
        *("-m", "--config-dir", "my_conf", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "experiment=letters"),
        *("freeze=full,classifier_only", "model.weights=experiment:letters", "debug=smoke", "study=mine"),
        *("trainer.device=cpu", "trainer.threads=1", "logger=none"),
    ]
    script = "import sys; from fourfold.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    (start,) = (tmp_path / "outputs/pretrained").iterdir()
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs/mine").glob("*/result.json")]
    assert sorted(result["config"]["freeze_strategy"]["name"] for result in results) == ["classifier_only", "full"]
    for result in results:
        assert result["config"]["model"]["weights"] == f"outputs/pretrained/{start.name}/best.pt"
        assert result["run_id"] == run_id(result["config"])
    assert (tmp_path / "outputs/mine/report.html").exists()


def test_what_cannot_run_is_refused_before_its_start_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = compose(["freeze=last_blocks", "freeze_strategy.blocks=99", "dataset.shots=2", "logger=none"])
    with pytest.raises(ConfigError, match=r"freeze_strategy\.blocks=99, but this model has"):
        execute(refused, tmp_path / "run")
    assert not list(tmp_path.rglob("*.pt"))


def test_an_interval_needs_a_sweeper_that_searches() -> None:
    from fourfold import multirun

    with pytest.raises(ConfigError, match=r"interval\(1e-5,1e-1\)\) is an interval, .* leave hydra/sweeper=basic out"):
        multirun.plan(["search=lr", "hydra/sweeper=basic"])
    assert multirun.plan(["search=lr"]).max_failure_rate == 1.0
