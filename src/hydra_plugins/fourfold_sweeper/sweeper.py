"""Hydra's side of a study. Imported by every start of Hydra, so it imports nothing heavy; the work is in `_engine`."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf


class FourfoldSweeper(Sweeper):
    """Comma lists are cells, intervals are searched in each of them; see docs/sweeps.md.

    Args:
        storage: journal, sqlite, or the URL of a database.
        workers: Processes on this machine.
        n_jobs: Runs that are handed to the launcher at once.
        params: Overrides that are swept beside those of the command line.
        heads: Runs whose heads are trained together, where nothing but the head learns.
        conditional: Params that only some cells search; see `study.space.read`.
    """

    def __init__(
        self,
        storage: str,
        workers: int,
        n_jobs: int | None,
        heads: int,
        params: DictConfig | None,
        conditional: ListConfig | None,
    ) -> None:
        self.hydra_context: Any = None  # all five come with `setup`
        self.config: Any = None
        self.launcher: Any = None
        self.task: Any = None
        self.jobs: Any = None
        self.storage = storage
        self.workers = workers
        self.n_jobs = n_jobs
        self.heads = heads
        self.conditional: Any = OmegaConf.to_container(conditional) if conditional else []
        self.params: dict[str, Any] = {str(key): value for key, value in (params or {}).items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        from fourfold.jobs import Jobs
        from hydra_plugins.fourfold_sweeper._task import TrialTask

        self.hydra_context = hydra_context
        self.config = config
        self.jobs = Jobs(hydra_context.config_loader)  # all that launchers ask of a loader
        if "basic" in str(config.hydra.launcher.get("_target_", "")):  # another launcher composes in processes of its own
            hydra_context = HydraContext(self.jobs, hydra_context.callbacks)
        self.task = TrialTask(task_function)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=self.task, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from hydra_plugins.fourfold_sweeper._engine import sweep

        sweep(self, arguments)
