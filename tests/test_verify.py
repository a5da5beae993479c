"""Published tables: every shipped one composes and runs its stand-in, and figures pass, fail or were not run as they should."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fourfold import cli, groups, verify
from fourfold.compose import composed, hydra_ready, to_run_config
from fourfold.config import ConfigError
from fourfold.study.space import read
from study.synthetic import write_run

REPRODUCE = sorted(name for name in groups.options((groups.conf_dir(),))["experiment"] if name.startswith("reproduce/"))
TRAINED = [name for name in REPRODUCE if name.rpartition("/")[2] not in ("cui_emd", "logme_ranking")]
CELLS = {"kornblith12": 200, "vtab_quadrants": 72, "tllib_sampling": 60, "vpt_table1": 210, "bit_fewshot": 18}
MINE = """# @package _global_
# A table to be held against
study: mine
reproduce:
  source: nobody
  tables:
    - name: accuracy
      measure: test/acc
      given: {dataset.shots: 5}
      axes: [freeze_strategy, dataset]
      below: 0.03
      above: 0.01
      values:
        full: {digits: 0.90, dtd: 0.80, svhn: 0.70}
    - name: both
      measure: test/acc
      axes: [freeze_strategy]
      over: {key: dataset, values: [digits, dtd]}
      below: 0.02
      above: 0.02
      values: {full: 0.85, lp_ft: 0.80}
    - name: order
      measure: test/acc
      axes: [freeze_strategy, dataset]
      order: 0.9
      values:
        full: {digits: 0.90, dtd: 0.80}
        lp_ft: {digits: 0.90, dtd: 0.80}
"""


@pytest.fixture(autouse=True)
def _argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fourfold"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(MINE)
    return tmp_path / "conf"


def verdicts(folder: Path, conf: Path) -> dict[str, tuple[str, float | None]]:
    _, found = verify.checks("mine", [f"paths.outputs={folder}"], [conf])
    return {check.title: (check.verdict, check.measured) for check in found}


def test_nothing_that_was_not_run_passes_or_fails(tmp_path: Path, mine: Path) -> None:
    assert set(verdicts(tmp_path, mine).values()) == {("not run", None)}


def test_figures_pass_within_their_tolerance_and_fail_outside(tmp_path: Path, mine: Path) -> None:
    study = tmp_path / "mine"
    for seed, test in enumerate((0.86, 0.89)):  # .875 on average: .025 below
        write_run(study, dataset="digits", seed=seed, test=test)
    write_run(study, dataset="dtd", test=0.815)  # .015 above, of .010
    write_run(study, dataset="svhn", test=0.70, shots=7)  # of another size
    found = verdicts(tmp_path, mine)
    assert found["accuracy: full digits"] == ("pass", pytest.approx(0.875))
    assert found["accuracy: full dtd"] == ("fail", pytest.approx(0.815))
    assert found["accuracy: full svhn"] == ("not run", None)
    assert found["both: full"] == ("pass", pytest.approx((0.875 + 0.815) / 2))
    assert found["both: lp_ft"] == ("not run", None)
    assert found["order: rank correlation, full"] == ("pass", pytest.approx(1))
    assert found["order: rank correlation, lp_ft"] == ("not run", None)


def test_validation_chooses_what_is_held_against_the_table(tmp_path: Path, mine: Path) -> None:
    write_run(tmp_path / "mine", dataset="digits", lr=1e-3, val=0.95, test=0.60)
    write_run(tmp_path / "mine", dataset="digits", lr=1e-2, val=0.90, test=0.90)  # which the test would choose
    assert verdicts(tmp_path, mine)["accuracy: full digits"] == ("fail", pytest.approx(0.60))


def test_an_order_the_other_way_round_fails(tmp_path: Path, mine: Path) -> None:
    write_run(tmp_path / "mine", dataset="digits", test=0.5)
    write_run(tmp_path / "mine", dataset="dtd", test=0.6)
    assert verdicts(tmp_path, mine)["order: rank correlation, full"] == ("fail", pytest.approx(-1))


def test_the_command_prints_the_table_and_fails_with_it(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "mine", "--config-dir", str(mine), f"paths.outputs={tmp_path}"]
    assert cli.command(words) == 0  # what was not run fails nothing
    assert capsys.readouterr().out.count("not run") == 8
    write_run(tmp_path / "mine", dataset="digits", test=0.2)
    assert cli.command(words) == cli.FAILED
    page = capsys.readouterr().out
    assert re.search(r"^accuracy: full digits +0\.900 +0\.870 to 0\.910 +0\.200 +1 +fail$", page, re.M)
    assert "0 pass, 1 fail, 6 not run. Published: nobody" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verify"], "names no published table"),
        (["verify", "reproduce/kornblith12", "--run", "--offline"], "names no published table"),
        (["verify", "quadrants_embedded"], "no published figures"),
        (["verify", "reproduce/kornblith13"], "kornblith13"),
    ],
)
def test_what_names_no_table_is_refused(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command(words) == cli.REFUSED
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("experiment", TRAINED)
def test_every_figure_of_a_shipped_table_is_that_of_some_run_of_its_sweep(experiment: str) -> None:
    cfg = composed([f"experiment={experiment}"])
    words = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    with hydra_ready() as hydra:
        parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(words)
    conditional = cfg.hydra.sweeper.conditional
    cells = read(parsed, n_trials=1, conditional=conditional, chosen=dict(cfg.hydra.runtime.choices))
    assert len(cells) == CELLS[experiment.rpartition("/")[2]]
    config = to_run_config(cfg)
    fixed = [dict(word.split("=", 1) for word in cell.fixed) for cell in cells]
    wanted: Counter[str] = Counter()
    for table in verify.tables_of(config, experiment):
        for keys, figure in table.cells():
            assert 0 < figure < 1
            told = {**table.given, **keys, **({table.over[0]: table.over[1][0]} if table.over else {})}
            as_words = {key: "null" if value is None else str(value) for key, value in told.items()}
            found = [cell for cell in fixed if all(cell.get(key, value) == value for key, value in as_words.items())]
            assert found, f"no run of the sweep has {as_words}"
            assert len(found) < len(fixed)
            wanted[str(as_words)] += 1
    assert max(wanted.values()) == 1  # no figure stands for two things
    # one run of each kind that conditions make; what the others have in common with it is composed with it
    kinds = {tuple(sorted(key for key in cell)): cell for cell in fixed}
    for cell in kinds.values():
        to_run_config(composed([f"experiment={experiment}", *(f"{key}={value}" for key, value in cell.items())]))


@pytest.mark.parametrize("experiment", REPRODUCE)
def test_a_stand_in_runs_offline(experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real architecture with random weights, two batches of generated images, through the experiment's configuration."""
    words = ["trainer.threads=1", f"paths.data={tmp_path / 'no data'}", f"paths.cache={tmp_path / 'cache'}"]
    words.append("model.image_size=64")  # of a transformer, whose weights are random and made for any
    assert cli.command(["verify", experiment, "--offline", *words]) == 0, capsys.readouterr().err
    page = capsys.readouterr().out
    assert "nothing was compared" in page
    assert re.search(r"(loss|logme|similarity) -?\d", page)
    assert not (tmp_path / "no data").exists()


def test_a_data_set_is_as_similar_to_itself_as_can_be_and_less_to_another(tmp_path: Path) -> None:
    import torch

    from fourfold import models
    from fourfold.compose import compose
    from fourfold.resemblance import known, remembered

    words = ["dataset=glyph_digits", "dataset.kwargs.train=30", "dataset.val_size=20", "logger=none", "trainer.device=cpu"]
    random = compose([*words, "freeze=from_scratch"])
    torch.save(models.create(random.model, 10, pretrained=False).net.state_dict(), tmp_path / "random.pt")
    near = compose([*words, f"model.weights={tmp_path / 'random.pt'}"])
    far = compose(["dataset=textures", *words[1:], f"model.weights={tmp_path / 'random.pt'}"])
    assert known(near, near, tmp_path) is None
    assert remembered(near, near, tmp_path) == pytest.approx(1, abs=1e-6)
    assert remembered(near, far, tmp_path) < 0.999
    assert known(near, far, tmp_path) == remembered(near, far, tmp_path)


def test_a_table_that_lacks_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="give name, measure, axes and values"):
        verify.Table.of({"name": "a", "measure": "test/acc", "axes": ["dataset"]})
