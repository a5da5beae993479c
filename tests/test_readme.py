"""The README tells the truth: every command in it runs here in a short form, and its table lists the options that there are."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fourfold import cli, groups, models, multirun
from fourfold.compose import canonical, compose
from fourfold.config import RunConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORT = ["debug=smoke", "trainer.batch_size=2", "trainer.eval_batch_size=2", "trainer.precision=fp32"]
NO_DOWNLOAD = [
    "dataset.source=fake",
    "dataset.val_size=16",
    "++dataset.kwargs={size:160,test_size:8,num_classes:4,image_size:32,channels:3}",
]
NO_WORKERS = ["dataset.loader.num_workers=0", "dataset.loader.persistent_workers=false"]


PAGES = sorted((ROOT / "docs").glob("*.md"))


def typed(page: str) -> list[str]:
    """Lines of a page's `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(first: str) -> list[str]:
    """Lines of the README's `sh` blocks that begin with this word."""
    return [line for line in typed(README) if line.split()[0] == first]


def run(*words: str) -> None:
    assert cli.command([*words]) == 0


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fourfold"])


def make_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40, 30), (20 * i, 90, 200)).save(path)
    return paths


def make_photos(root: Path) -> None:
    for name in ("cat", "dog"):
        make_pictures(root / name, 10)


def make_table(root: Path) -> None:
    rows = [f"pictures/{path.name},{'cat' if i % 2 else 'dog'}" for i, path in enumerate(make_pictures(root / "pictures", 20))]
    (root / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n", encoding="utf-8")


def stand_ins(config: RunConfig, folder: Path) -> list[str]:
    """Overrides that replace what would be downloaded: fake images, and random weights in a file."""
    given = NO_WORKERS.copy()
    if config.dataset.source == "torchvision":
        given += [f"~dataset.kwargs.{key}" for key in config.dataset.kwargs] + NO_DOWNLOAD
    if config.model.source == "torchvision":
        given.append("model.image_size=64")
    if config.model.source in ("torchvision", "timm") and config.model.weights == "default":
        file = folder / "weights.pt"
        torch.save(models.create(config.model, 2, pretrained=False).net.state_dict(), file)
        given.append(f"model.weights={file}")
    return given


def first_values(override: str, count: int) -> str:
    key, _, value = override.partition("=")
    return override if value.startswith(("[", "{")) else f"{key}={','.join(value.split(',')[:count])}"


def test_the_readme_types_nothing_else() -> None:
    assert {line.split()[0] for line in typed(README)} == {"fourfold", "make"}


def test_make_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in commands("make"):
        assert any(line.startswith(command) for line in ci), f"{command} is not run by .ci/run"


@pytest.mark.parametrize("command", [line for line in commands("fourfold") if len(line.split()) > 1])
def test_command_runs_in_a_short_form(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "info":
        run(*words)
    elif words[0] in ("report", "status"):
        studies = [Path(word) for word in words if word.startswith("outputs/")]
        for study in studies:
            run("-m", "dataset=fake", "freeze=from_scratch", "seed=0,1", f"study={study.name}", "logger=none", *SHORT)
        name = "summary.md" if words[0] == "status" else "comparison.md" if len(studies) == 2 else "report.html"
        written = studies[-1] / ("report.tex" if words[-2:] == ["--format", "latex"] else name)
        written.unlink(missing_ok=True)
        run(*words)
        assert written.exists()
    elif words[0] == "-m":
        check_sweep(words[1:], tmp_path)
    else:
        make_photos(Path("my_photos"))
        make_table(Path("my_table"))
        run(*words, *[each for each in SHORT if each not in words], *stand_ins(compose(words), tmp_path))
        assert list(Path("outputs").rglob("result.json"))


def check_sweep(words: list[str], folder: Path) -> None:
    """Every value of the sweep composes and validates; two runs of it are made, and its report."""
    plan = multirun.plan(canonical(words))
    if any("interval(" in override for override in plan.overrides):
        return  # a search is tried in test_sweeper.py
    point = [first_values(override, 1) for override in plan.overrides]
    swept = next(i for i, override in enumerate(plan.overrides) if first_values(override, 1) != override)
    two = [*point[:swept], first_values(plan.overrides[swept], 2), *point[swept + 1 :]]
    config = compose([override for override in point if not override.startswith("hydra.")])
    run("-m", *two, *SHORT, *stand_ins(config, folder))
    (study,) = plan.folders
    assert len(list(Path(study).glob("*/result.json"))) == 2
    assert (Path(study) / "report.html").exists()


def test_the_table_lists_the_options_that_there_are() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    there_are = {group: set(options) for group, options in groups.options((groups.conf_dir(),)).items()}
    there_are["freeze"] = there_are.pop("freeze_strategy")
    assert table.keys() == there_are.keys()
    for group, cell in table.items():
        named = set(re.findall(r"`([\w/]+)`", cell)) - {"freeze_strategy"}
        assert named == there_are[group], group


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_the_other_pages_compose(page: Path) -> None:
    for command in typed(page.read_text(encoding="utf-8")):
        words = shlex.split(command, comments=True)[1:]
        if not command.startswith("fourfold ") or words[0] in ("report", "status", "verify") or "--config-dir" in words:
            continue
        overrides = [word for word in words if "=" in word]
        if "-m" in words or words[0] == "place":  # which takes lists, too
            multirun.plan(canonical(overrides))
        else:
            compose(overrides)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]
