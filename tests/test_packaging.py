"""What is installed is whole: the configs travel in the wheel, and an editable install holds no copy that could go stale."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_config_and_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"fourfold/conf/{path.relative_to(CONF).as_posix()}" for path in CONF.rglob("*.yaml")} <= names
    source = ROOT / "src"
    assert {path.relative_to(source).as_posix() for path in source.rglob("*.py")} <= names
    assert "fourfold/py.typed" in names


def test_the_plugin_namespace_stays_open_to_other_packages(wheel: Path) -> None:
    """Hydra looks for plugins in every hydra_plugins/ of the path; an __init__.py in ours would hide the others."""
    assert "hydra_plugins/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} <= {"fourfold", "hydra_plugins"}


def test_the_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import sys, fourfold.cli; print(fourfold.cli.__file__, file=sys.stderr); sys.exit(fourfold.cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--cfg", "job", "freeze=full", "dataset=fake"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},  # goes before the environment's own copy
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stderr
    assert "trainable: all" in done.stdout


def test_an_editable_install_copies_no_config(tmp_path: Path) -> None:
    code = f"import hatchling.build; hatchling.build.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as editable:
        assert not [name for name in editable.namelist() if name.endswith(".yaml")]
        (link,) = [name for name in editable.namelist() if name.endswith(".pth")]
        assert Path(editable.read(link).decode().strip()) == ROOT / "src"


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {name.lower().replace("_", "-") for name, _, version in (line.partition("==") for line in lines) if version}
    assert len(pinned) == len(lines), "only plain name==version lines"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {line.split(";")[0].split(">")[0].split("[")[0].strip().lower() for line in wanted}
    assert names - {"fourfold"} <= pinned


def test_the_dockerfile_copies_what_exists_and_is_let_in() -> None:
    copies = [
        line.split()[1:-1]
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ")
    ]
    copied = {source for sources in copies for source in sources}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")}
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)
