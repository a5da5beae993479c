"""Which set-ups of a sweep are tried before its first run: those of the cells that have something left to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from fourfold.config import RunConfig
from fourfold.prospects import Compose, prospects, varying
from fourfold.study import preflight as study
from fourfold.study.ledger import finished
from fourfold.study.space import Cell
from fourfold.study.storage import beside, existing

if TYPE_CHECKING:
    from hydra_plugins.fourfold_sweeper.sweeper import FourfoldSweeper


def preflight(sweeper: "FourfoldSweeper", cells: Sequence[Cell], config: RunConfig, folder: Path) -> None:
    """Try what is left of the sweep.

    Raises:
        ConfigError: nothing of it can run, or something cannot and the configuration wants to know it first.
    """
    storage = existing(sweeper.storage, folder)
    here, most = beside(sweeper.storage, folder), config.search.max_retries
    left = [cell for cell in cells if storage is None or len(finished(storage, config.study, cell, most, here)) < cell.budget]
    if not left:
        return
    found = prospects(left, compose(sweeper), varying(cells), one_of_each=True)
    trains_here = sweeper.workers == 1 and "basic" in str(sweeper.config.hydra.launcher.get("_target_", ""))
    study.preflight(
        [study.Candidate(each.key, each.label, each.config) for each in found if each.cell or not each.finished],
        folder,
        config.search.preflight,
        others_run=len(left) < len(cells),
        apart=not trains_here,
        shared=sweeper.task.stock(sweeper.heads) if trains_here else None,
    )


def compose(sweeper: "FourfoldSweeper") -> Compose:
    """Hydra's composition of one of the sweep's jobs, from its overrides."""

    def job(overrides: list[str]) -> DictConfig:
        return sweeper.jobs.load_sweep_config(sweeper.config, overrides)

    return job
