"""Which options each group has: found by listing the configuration folders, with nothing imported."""

from collections.abc import Iterable
from pathlib import Path

FREEZE = ("freeze", "freeze_strategy")  # two names of one group: the short one for people, the long one in every config


def conf_dir() -> Path:
    """The package's own configuration: `fourfold/conf` in an installed wheel, `conf/` in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "conf"


def options(dirs: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Group -> option -> file, over all of `dirs`; the first folder that has an option wins, as in Hydra."""
    found: dict[str, dict[str, Path]] = {}
    for folder in dirs:
        for file in sorted(folder.glob("*/**/*.yaml")):
            group, name = file.relative_to(folder).with_suffix("").as_posix().split("/", 1)
            if group != "hydra":
                found.setdefault(group, {}).setdefault(name, file)
    return dict(sorted(found.items()))


def meaning(file: Path) -> str:
    """The first comment line of an option, `# @package` aside."""
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#") and text and not text.startswith("@"):
            return text
        if text and not line.startswith("#"):
            break
    return ""
