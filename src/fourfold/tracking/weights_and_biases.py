"""Weights & Biases: online if a key works, otherwise offline, and never a reason for a run to end.

Written against wandb 0.31. W&B keeps one session per process (`wandb.setup`), which `wandb.teardown` ends.
"""

import functools
import itertools
import logging
import secrets
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Literal, Self

import torch
import wandb
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fourfold.config import ConfigError, RunConfig
from fourfold.files import write_text
from fourfold.identity import strategy
from fourfold.records import asdict
from fourfold.tracking.tracker import Tracker
from fourfold.trial import Pruned, Stopped, Trial

INIT_TIMEOUT = 30.0  # seconds for a server that does not answer when a run begins
FINISH_TIMEOUT = 120.0  # seconds for the last rows to arrive; what does not is kept on the disk
WATCH_EVERY = 100  # backward passes between two histograms of a gradient
NAME_LENGTH, TAG_LENGTH = 128, 64  # characters that W&B takes
MARKED = ("pruned", "failed")  # the ends that a run's tags tell, beside its summary
NOT_IN_NAME = ("study", "logger", "paths", "hydra", "experiment", "search", "debug")

Mode = Literal["online", "offline", "disabled"]

log = logging.getLogger(__name__)


class WandbRun(Tracker):
    """One W&B run. The first failure of W&B is told in a warning; the run goes on."""

    def __init__(self, config: RunConfig, folder: Path, *, run_id: str, overrides: tuple[str, ...], trial: Trial) -> None:
        self._config = config
        self._options = config.logger.wandb
        self._folder = folder
        self._study = folder.parent
        self._run_id = run_id
        self._trial = trial
        self._name = short_name(overrides) or folder.name
        self._run: wandb.Run | None = None
        self._stop = Event()
        self._watched: nn.Module | None = None
        self._hooks: dict[str, RemovableHandle] = {}
        self._dropped: Any = None  # a weakref.finalize that ends the run of a tracker that nobody closes
        self._warned = False
        self._hint: str | None = None

    def __enter__(self) -> Self:
        with self._forgiven("starting"):
            again = (self._folder / "wandb_id").exists()
            self._run = self._begin(reachable_mode(self._options.mode))
            # what an earlier start has said of its end is no longer true; its mark among the tags is gone, too
            self.summary({"status": "running", **({"failure": None} if again else {})})
        return self

    def _begin(self, mode: Mode) -> wandb.Run | None:
        if mode == "disabled":
            return None
        if mode == "online":
            try:
                return self._init(mode)
            except Exception as error:
                log.warning("W&B could not start a run online (%s): this process goes on offline", _first_line(error))
                go_offline()
        self._offer_hint()
        return self._init("offline")

    def _init(self, mode: Mode) -> wandb.Run:
        self._study.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._options.project,
            entity=self._options.entity,
            group=self._config.study,
            job_type="train",
            name=self._name[:NAME_LENGTH],
            tags=tags(self._config),
            config=self._recorded(),
            dir=self._study,  # one for all runs of a study: `wandb sync` and `wandb leet` work on one folder
            id=saved_id(self._folder / "wandb_id", self._run_id),
            resume="allow",
            mode=mode,
            # runs that are told in step are open at once; the default would log into the one of them that began first
            reinit="create_new",
            settings=wandb.Settings(
                quiet=True,
                silent=mode == "offline",
                console="off",
                x_save_requirements=False,  # a third of a second per run; result.json has the versions that matter
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
                finish_timeout_raises=True,
                stop_fn=self._stop.set,  # the default interrupts the main thread, which ends a whole sweep
            ),
        )
        self._dropped = weakref.finalize(self, _finish, run)
        run.define_metric("epoch", hidden=True)
        run.define_metric("*", step_metric="epoch")
        return run

    def _recorded(self) -> dict[str, Any]:
        """The configuration of the run, and where it belongs."""
        place = {} if self._trial.cell is None else {"trial": {"cell": self._trial.cell, "number": self._trial.number}}
        return {**asdict(self._config), "run_id": self._run_id, "folder": str(self._folder), **place}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks.values():
            hook.remove()
        if self._run is None:
            return
        if self._dropped is not None:
            self._dropped.detach()
        end = status(error)
        self._mark(end, error)
        try:
            # Not the W&B run's own `with`, which prints the traceback that whoever catches the exception prints again.
            self._run.finish(exit_code=0 if end in ("finished", "pruned") else 1)
        except Exception as failure:
            self._warn("finishing", failure)
            self._offer_hint()
            with suppress(Exception):
                wandb.teardown()  # so that the next run of this process starts clean

    def _mark(self, end: str, error: BaseException | None) -> None:
        """How the run ended: W&B's own state knows no pruned runs, and shows an interrupted one as failed."""
        self.summary({"status": end, **({"failure": sentence(error)} if error is not None and end == "failed" else {})})
        with self._forgiven("tagging"):
            if self._run is not None and end in MARKED:
                self._run.tags = (*tags(self._config), end)

    def log(self, row: dict[str, float]) -> None:
        # Never with `step=`: W&B drops rows whose step goes back, as it does after a resume.
        with self._forgiven("logging an epoch"):
            if self._run is not None:
                self._run.log(dict(row))
        self._hook_what_learns()

    def summary(self, values: dict[str, Any]) -> None:
        with self._forgiven("logging the summary"):
            if self._run is not None:
                self._run.summary.update(values)

    def log_model(self, path: Path) -> None:
        if not self._options.log_model:
            return
        with self._forgiven(f"logging {path.name}"):
            if self._run is not None:
                artifact = wandb.Artifact(f"model-{self._run.id}", type="model")
                artifact.add_file(str(path), policy="immutable")  # the default policy copies it into the user's home
                self._run.log_artifact(artifact, aliases=["best"])

    def watch(self, model: nn.Module) -> None:
        """Histograms of the gradients of what learns.

        Not by `run.watch`, whose hooks raise inside the backward pass when W&B fails (wandb 0.31).
        """
        if self._options.watch and self._run is not None:
            self._watched = model
            self._hook_what_learns()

    def _hook_what_learns(self) -> None:
        """Again after every epoch, for what an unfreezing step has added."""
        if self._watched is None:
            return
        for name, parameter in self._watched.named_parameters():
            if parameter.requires_grad and name not in self._hooks:
                note = functools.partial(self._note_gradient, name, itertools.count())
                self._hooks[name] = parameter.register_hook(note)

    def _note_gradient(self, name: str, passes: Iterator[int], gradient: Tensor) -> None:
        if next(passes) % WATCH_EVERY:
            return
        with self._forgiven("logging gradients"):
            if self._run is not None:
                self._run.log({f"gradients/{name}": histogram(gradient)}, commit=False)

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def hint(self) -> str | None:
        return self._hint

    def _offer_hint(self) -> None:
        """Set the hint, unless another run of this study has given it: a file remembers, for whoever looks for it later."""
        note = self._study / "wandb" / "how_to_sync.txt"
        with self._forgiven("writing"):
            note.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = note.open("x", encoding="utf-8")
            except FileExistsError:
                return
            with file:
                self._hint = sync_hint(self._study)
                file.write(self._hint + "\n")

    @contextmanager
    def _forgiven(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(doing, error)

    def _warn(self, doing: str, error: Exception) -> None:
        if not self._warned:
            message = "W&B failed while %s (%s): the run goes on, and its own folder has the whole record"
            log.warning(message, doing, _first_line(error))
        self._warned = True


def _finish(run: wandb.Run) -> None:
    with suppress(Exception):
        run.finish(exit_code=1)


def reachable_mode(wanted: str) -> Mode:
    """The mode in which W&B can work here.

    Args:
        wanted: `logger.wandb.mode`. Where it is auto or online, the user's own WANDB_MODE or `wandb offline` is respected.
    """
    modes: dict[str, Mode] = {"offline": "offline", "disabled": "disabled"}
    if wanted in modes:
        return modes[wanted]
    session = wandb.setup().settings.mode
    if session in modes:
        return modes[session]
    if logged_in(must=wanted == "online"):
        return "online"
    go_offline()
    return "offline"


@functools.cache  # once per process: a server that does not answer costs 10 s
def logged_in(must: bool) -> bool:
    """Whether there is a key, and a server that accepts it. A missing key is worth a warning only where it `must` be there."""
    try:
        if wandb.login(prompt=False, verify=True):
            return True
    except Exception as error:
        log.warning("W&B cannot be used online (%s): this process goes on offline", _first_line(error))
        return False
    if must:
        log.warning("logger.wandb.mode=online, but W&B has no key here: this process goes on offline; run `wandb login`")
    return False


def go_offline() -> None:
    """Keep this process offline, so that a dead server is waited for once, not by every run of a sweep."""
    wandb.teardown()  # after a failed start, the run's id cannot be used again in this session
    wandb.setup(settings=wandb.Settings(mode="offline"))


def saved_id(path: Path, run_id: str) -> str:
    """W&B's id of the run in this folder, the same after every resume.

    Drawn once and kept in `path`: two folders never share an id, even for equal configurations in two studies.
    """
    if not path.exists():
        write_text(path, f"{run_id}-{secrets.token_hex(3)}")
    return path.read_text(encoding="utf-8").strip()


def short_name(overrides: tuple[str, ...]) -> str:
    """`model=vgg16,lr=0.01,seed=1`: what sets a run apart, each key by its last word where that is clear."""
    pairs = [override.lstrip("+").split("=", 1) for override in overrides if "=" in override]
    told = [(key, value) for key, value in pairs if key.split(".")[0] not in NOT_IN_NAME]
    words = Counter(key.split(".")[-1] for key, _ in told)

    def short(key: str) -> str:
        word = key.split(".")[-1]
        return word if words[word] == 1 and word != "name" else key

    return ",".join(f"{short(key)}={value}" for key, value in told)


def tags(config: RunConfig) -> list[str]:
    """Data set, model, strategy and quadrant, then the user's own, cut to what W&B takes; it refuses a run for one bad tag."""
    names = (config.dataset.name, config.model.name, strategy(asdict(config)), config.quadrant.name)
    cut = [(name or "").strip()[:TAG_LENGTH].strip() for name in (*names, *config.logger.wandb.tags)]
    return list(dict.fromkeys(tag for tag in cut if tag))


def status(error: BaseException | None) -> str:
    """How a run ended: `finished`, `pruned`, `failed` or `interrupted`.

    Args:
        error: what has left the run, if anything.
    """
    if error is None:
        return "finished"
    if isinstance(error, Pruned):
        return "pruned"
    return "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, ConfigError) else f"{type(error).__name__}: {said}"


def sync_hint(study: Path) -> str:
    """How to bring a study's W&B record to its page. Without the flag, runs that began online are passed over."""
    runs = study / "wandb"
    shown = runs.relative_to(Path.cwd()) if runs.is_relative_to(Path.cwd()) else runs
    return f"W&B is offline; to upload later: `wandb login`, then `wandb sync --include-online {shown}`"


def histogram(gradient: Tensor) -> wandb.Histogram:
    """64 bins, counted on the gradient's own device; what is not finite counts as 0."""
    finite = torch.nan_to_num(gradient.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    edges = torch.linspace(float(finite.min()), float(finite.max()), 65)
    return wandb.Histogram(np_histogram=(torch.histc(finite, 64).cpu().numpy(), edges.numpy()))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
