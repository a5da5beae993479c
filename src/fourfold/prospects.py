"""What the cells of a sweep would run: configuration, folder and set-up of each, composed as seldom as can be.

Hydra composes in a tenth of a second, and a sweep has hundreds of cells. But a plain value, such as `optimizer.lr=0.1`, is what
Hydra writes last, over whatever the groups say; so what differs in plain values only is composed once, and written over.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from fourfold import identity
from fourfold.compose import Start, start_of, to_run_config, user_dirs
from fourfold.config import RunConfig
from fourfold.records import asdict
from fourfold.study.space import Cell, corners
from fourfold.study.trials import label

Compose = Callable[[list[str]], DictConfig]


@dataclass(frozen=True)
class Prospect:
    """One run that a sweep would make."""

    cell: Cell | None  # None: another run starts from its weights
    row: str  # what sets its cell apart in this sweep, but for seeds and the numbers of the optimizer
    label: str  # the same of its set-up: with what is searched
    config: RunConfig  # as `dry_run` takes it: weights that nobody has made yet are random
    key: str  # of its set-up: identity.parts_id
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run has been made. A corner of a search says nothing about the search."""
        return not (self.cell and self.cell.space) and (self.folder / "result.json").exists()


def prospects(
    cells: Sequence[Cell], compose: Compose, swept: Collection[str] | None = None, *, one_of_each: bool = False
) -> list[Prospect]:
    """The run of each cell; of one that searches, a run for each corner of its space in turn. First, the runs they start from.

    Args:
        cells: Of the sweep, or some of them.
        compose: Hydra's composition of a job, from its overrides.
        swept: Keys that vary in the whole sweep; by default in these cells.
        one_of_each: One run of each set-up, which is quicker: what differs only in keys that no part depends
            on is not composed.

    Raises:
        ConfigError: a cell cannot be composed.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}
    starts: dict[Path, Prospect] = {}
    found: list[Prospect] = []
    swept = varying(cells) if swept is None else swept
    kinds: set[tuple[str, ...]] = set()
    for cell in cells:
        row = _label(cell.fixed, swept)
        for overrides in corners(cell):
            kind = tuple(each for each in overrides if identity.in_the_parts(_key(each).lstrip("+~")))
            if one_of_each and kind in kinds:
                continue
            kinds.add(kind)
            parsed = OverridesParser.create().parse_overrides([*overrides])
            cfg = _written_over(parsed, compose, composed)
            config, dirs = to_run_config(cfg), user_dirs(cfg.hydra)
            key = identity.parts_id(asdict(config))
            if one_of_each and any(each.key == key for each in found):
                continue
            start = start_of(config, dirs)
            if start is not None and start.folder not in starts:
                starts |= _starts(start, dirs)
            found.append(
                Prospect(
                    cell=cell,
                    row=row,
                    label=_label(overrides, {*swept, *cell.space}),
                    config=_ready(config, start),
                    key=key,
                    folder=Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir,
                )
            )
    return [*starts.values(), *found]


def varying(cells: Sequence[Cell]) -> set[str]:
    """Keys, with Hydra's prefix, that do not have one and the same value in all cells."""
    texts = [{_key(override): override for override in cell.fixed} for cell in cells]
    return {key for each in texts for key in each if any(other.get(key) != each[key] for other in texts)}


def _label(overrides: Sequence[str], keys: Collection[str]) -> str:
    """`similar_small full`: the overrides of these keys, without those that the parts of a run do not depend on."""
    return label([each for each in overrides if (key := _key(each)) in keys and identity.in_the_parts(key.lstrip("+~"))])


def _key(override: str) -> str:
    return override.partition("=")[0]


def _starts(start: Start, dirs: Sequence[Path]) -> dict[Path, Prospect]:
    """The run that others start from, after the one that it starts from itself."""
    above = start_of(start.config, dirs)
    key = identity.parts_id(asdict(start.config))
    name = start.overrides[0].partition("=")[2]
    mine = Prospect(None, f"experiment:{name}", f"experiment:{name}", _ready(start.config, above), key, start.folder)
    return {**(_starts(above, dirs) if above else {}), start.folder: mine}


def _ready(config: RunConfig, start: Start | None) -> RunConfig:
    """The weights that a run starts from, where they have been made; else random ones, which take as long."""
    if start is None:
        return config
    made = (start.folder / "result.json").exists()
    return replace(config, model=replace(config.model, weights=start.weights if made else None))


def _written_over(parsed: Sequence[Override], compose: Compose, composed: dict[tuple[str, ...], DictConfig]) -> DictConfig:
    plain = [override for override in parsed if _is_plain(override)]
    groups = [str(override.input_line) for override in parsed if not _is_plain(override)]
    key = (*groups, *(override.key_or_group for override in plain))
    if key not in composed:
        composed[key] = compose([str(override.input_line) for override in parsed])
    for override in plain:
        OmegaConf.update(composed[key], override.key_or_group, override.value())
    return composed[key]


def _is_plain(override: Override) -> bool:
    """Whether it sets one value that the schema knows."""
    if override.get_key_element() != override.key_or_group or isinstance(override.value(), dict):
        return False  # + or ~, or a package
    kind: Any = RunConfig
    for name in override.key_or_group.split("."):
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        if name not in hints:
            return False
        kind = hints[name]
    return not is_dataclass(kind)
