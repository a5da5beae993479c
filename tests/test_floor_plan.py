"""The house stands as docs/architecture.md draws it: imports go down, rare libraries keep to their rooms, the door is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
import yaml

from fourfold.groups import meaning

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fourfold"
CONF = ROOT / "conf"

GROUND = {"allocator", "config", "imports", "records", "scores", "zoo"}
FACTS = {
    "advice",
    "checks",
    "entries",
    "estimate",
    "files",
    "groups",
    "identity",
    "interrupts",
    "losses",
    "metrics",
    "planes",
    "provenance",
    "ranks",
    "relationship",
    "schedule",
    "seeding",
    "state",
    "target",
    "transferability",
    "trial",
}
PARTS = {"checkpoint", "data", "freeze", "loop", "memory", "models", "optim", "profiler", "tracking"}
DOOR = {
    "__main__",
    "auto",
    "cli",
    "compose",
    "explain",
    "info",
    "jobs",
    "multirun",
    "place",
    "plan",
    "prospects",
    "resemblance",
    "stand_in",
    "survey",
    "task",
    "usage",
    "verify",
}
FLOORS = (
    GROUND,
    FACTS,
    {"activations", "placement"},
    PARTS,
    {"adaptation", "drift", "features", "mistakes", "pace", "regularizers", "stacked"},
    {"stock", "terms"},
    {"assembly", "measuring"},
    {"batched"},
    {"exact"},
    {"result"},
    {"dry_run", "run"},
    {"chorus"},
    {"study"},
    {"report"},
    DOOR,
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SIDEWAYS = {
    ("freeze", "models"),
    ("optim", "freeze"),
    ("result", "assembly"),
    ("zoo", "imports"),
    *permutations(DOOR, 2),
}  # the first two: types only

ROOMS_OF = {
    "hydra": {*DOOR, "study"},  # of the study, what a sweep means
    "omegaconf": DOOR,
    "wandb": {"tracking"},
    "optuna": {"study"},  # and the sweeper in src/hydra_plugins
    "sqlalchemy": {"study"},
    "timm": {"zoo"},
    "torchmetrics": {"metrics"},
}
HEAVY = {"matplotlib", "numpy", "optuna", "scipy", "sklearn", "timm", "torch", "torchmetrics", "torchvision", "wandb"}
GROUPS = {
    "adapt",
    "dataset",
    "debug",
    "experiment",
    "freeze_strategy",
    "logger",
    "model",
    "optimizer",
    "paths",
    "place",
    "quadrant",
    "regularizer",
    "scheduler",
    "search",
    "trainer",
    "transform",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, inside functions too; relative imports are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: write the full name"
            if node.module == "fourfold":
                yield from (f"fourfold.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def options() -> list[Path]:
    return sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor: give it one here and in docs/architecture.md"
    for name in imported(path):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package != "fourfold" or other in ("", room, "__version__") or (room, other) in SIDEWAYS:
            continue
        assert other in FLOOR_OF, f"{path.name} imports fourfold.{other}, which has no floor"
        assert FLOOR_OF[other] < FLOOR_OF[room], (
            f"{path.name} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})"
        )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rare_libraries_keep_to_their_rooms(path: Path) -> None:
    strangers = {
        library
        for name in imported(path)
        if room_of(path) not in ROOMS_OF.get(library := name.partition(".")[0], {room_of(path)})
    }
    assert not strangers, f"{path.name} imports {strangers}, which belong to {[ROOMS_OF[library] for library in strangers]}"


@pytest.mark.parametrize("module", ["fourfold.cli", "fourfold.compose", "fourfold.config", "fourfold.identity"])
def test_the_door_is_light(module: str) -> None:
    """`fourfold --help` and tab completion must not wait for torch."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {room_of(path) for path in sources()}
    missing = {room for room in rooms if f"{room}.py" not in page and f"{room}/" not in page}
    assert not missing


def test_every_group_is_known_and_chosen_in_the_root_config() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == GROUPS | {"hydra"}
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}
    assert chosen - {"freeze", "override hydra/sweeper"} == GROUPS


@pytest.mark.parametrize("path", options(), ids=lambda path: str(path.relative_to(CONF)))
def test_every_option_opens_with_its_meaning(path: Path) -> None:
    """`fourfold --help` prints it."""
    told = meaning(path)
    assert len(told.split()) > 3, f"{path.relative_to(ROOT)} opens with {told!r}, which tells nobody anything"
