"""One function finds the user's own code."""

from pathlib import Path

import pytest

from fourfold.config import ConfigError
from fourfold.target import resolve


def test_it_finds_functions_classes_and_methods_of_installed_packages() -> None:
    assert resolve("pathlib.Path") is Path
    assert resolve("pathlib.Path.home") == Path.home


def test_it_finds_a_file_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text("def build(): return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert resolve("beside_me.build")() == 7


def test_a_name_that_is_not_there_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="pathlib has no Pth, did you mean Path"):
        resolve("pathlib.Pth")
    with pytest.raises(ConfigError, match="there is no module no_such_package"):
        resolve("no_such_package.build")
    with pytest.raises(ConfigError, match=r"give package\.module\.function"):
        resolve("build")


def test_an_error_inside_the_users_module_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("import not_installed_either\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_either"):
        resolve("broken_one.build")
