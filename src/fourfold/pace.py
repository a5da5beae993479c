"""What makes the steps of a run fast on its device: precision and memory format by a short probe, and compilation."""

import copy
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourfold.config import RunConfig
from fourfold.files import lock, read_json, write_json
from fourfold.loop import Batch, Kit, kernels_tried, train_one_epoch
from fourfold.models.frontier import Absent
from fourfold.ranks import Ranks
from fourfold.records import asdict
from fourfold.seeding import rng_state, set_rng_state
from fourfold.state import State

log = logging.getLogger(__name__)
FILE = "pace.json"
ROUNDS = 4  # steps of each choice, of which the first is not timed
BEHIND = 1.5  # a choice whose first timed step takes as many times longer than the fastest's takes no more
FEW = 8  # images of a probed step on a CPU, where time grows with them; a GPU is probed with all that a step holds at once
WORTH_IT = 0.95  # seconds of another choice, relative to plain fp32, below which it is taken: clocks are not exact


@dataclass(frozen=True)
class Pace:
    """What was chosen, and what a step took with each choice."""

    precision: str
    channels_last: bool
    seconds: dict[str, float]  # CPU seconds of a step on a CPU, else wall seconds

    def into(self, config: RunConfig) -> RunConfig:
        """The run that is built, which has the identity of `config` all the same."""
        return replace(config, trainer=replace(config.trainer, precision=self.precision, channels_last=self.channels_last))


def plain(config: RunConfig) -> RunConfig:
    """The run without anything that has to be tried or compiled first."""
    trainer = config.trainer
    precision = "fp32" if trainer.precision == "auto" else trainer.precision
    layout = trainer.channels_last is True
    return replace(config, trainer=replace(trainer, precision=precision, channels_last=layout, compile=False))


def decided(config: RunConfig, folder: Path, ranks: Ranks, steps: Callable[[Sequence[Pace]], list[float | None]]) -> RunConfig:
    """The run with `trainer.precision=auto` and `trainer.channels_last=auto` settled: as this run has done before, as another
    run of the same model on such a device in the folder beside it, or as a probe finds now.

    Args:
        config: What is asked for.
        folder: Of the run.
        steps: Seconds of a step with each of these choices, over all processes; None where one does not run.
    """
    if "auto" not in (config.trainer.precision, config.trainer.channels_last):
        return config
    choices = _choices(config, ranks.device)
    shared = folder.parent / ".pace" / f"{_key(config, ranks.device)}.json"
    with lock(shared.with_suffix(".lock")) if ranks.first else nullcontext():  # who comes second finds what the first has
        known = _known((folder / FILE, shared)) if ranks.first else None
        place = next((i for i, choice in enumerate(choices, 1) if _same(choice, known)), 0)
        place = int(ranks.total(place)[0])  # only the first process reads
        pace = choices[place - 1] if place else _probed(choices, steps)
        if ranks.first:
            pace = replace(pace, seconds=known.seconds if known and place else pace.seconds)
            write_json(folder / FILE, asdict(pace))
            if not place and pace.seconds:  # where no step ran at all, as without memory, others look for themselves
                write_json(shared, asdict(pace))
            _tell(config, pace, before=place > 0)
    return pace.into(config)


def step_seconds(
    net: nn.Module, kits: Sequence[Kit], batches: Sequence[Batch], *, clock: Callable[[], float] | None = None
) -> list[float | None]:
    """Seconds of a training step with each kit, over all processes; None where one does not run.

    A copy of the network takes the steps, with a rate of 0, and the random numbers are put back: nothing of the run changes.

    Args:
        net: With what learns set to learn.
        batches: The micro-batches of a step, of which the first is used.
        clock: By default CPU seconds of this process on a CPU, which other processes do not disturb; elsewhere wall seconds.
    """
    ranks = kits[0].ranks
    clock = clock or (time.process_time if ranks.device.type == "cpu" else time.perf_counter)
    numbers = rng_state()
    few = FEW if ranks.device.type == "cpu" else None
    batches = [[part[:few] for part in batches[0]]]
    trial = copy.deepcopy(net)
    optimizer = torch.optim.SGD([each for each in trial.parameters() if each.requires_grad], lr=0.0)
    images = sum(len(batch[1]) for batch in batches) * ranks.world
    taken: list[list[float]] = [[] for _ in kits]
    broken: set[int] = set()
    behind: set[int] = set()
    try:
        for turn in range(ROUNDS):
            for i, kit in enumerate(kits):
                if i not in broken | behind:
                    layout = torch.channels_last if kit.channels_last else torch.contiguous_format
                    trial.to(memory_format=layout)
                    try:
                        taken[i].append(_one_step(trial, kit, batches, images, optimizer, clock))
                    except RuntimeError as error:  # a layout that does not fit the inputs, too little memory, a loss of NaN
                        log.debug("a step did not run: %s", error)
                        broken.add(i)
                        optimizer.zero_grad(set_to_none=True)
            if turn == 1:
                behind = _behind(ranks.total(*(0.0 if i in broken else times[1] for i, times in enumerate(taken))), broken)
    finally:
        set_rng_state(numbers)
    totals = ranks.total(*(0.0 if i in broken else statistics.median(times[1:]) for i, times in enumerate(taken)))
    failed = ranks.total(*(float(i in broken) for i in range(len(kits))))
    return [None if wrong else total for total, wrong in zip(totals, failed, strict=True)]


def _behind(seconds: Sequence[float], broken: set[int]) -> set[int]:
    running = [i for i in range(len(seconds)) if i not in broken]
    return {i for i in running if seconds[i] > BEHIND * min(seconds[j] for j in running)}


def _one_step(
    net: nn.Module,
    kit: Kit,
    batches: Sequence[Batch],
    images: int,
    optimizer: torch.optim.Optimizer,
    clock: Callable[[], float],
) -> float:
    ends: list[float] = []

    def on_step(loss: Callable[[], float], lr: float) -> None:
        loss()  # waits for the device
        ends.append(clock())

    started = clock()
    with kernels_tried():
        train_one_epoch(
            net,
            [batches],
            kit,
            optimizer,
            State(),
            images_in=lambda step: images,
            set_rate=lambda step: 0.0,
            ema=None,
            should_stop=lambda: False,
            on_step=on_step,
        )
    return ends[0] - started


def _choices(config: RunConfig, device: torch.device) -> list[Pace]:
    """What may be chosen, the plainest first."""
    trainer = config.trainer
    half = "bf16" if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    precisions = ("fp32", half) if trainer.precision == "auto" else (trainer.precision,)
    layouts = (False, True) if trainer.channels_last == "auto" else (bool(trainer.channels_last),)
    return [Pace(precision, layout, {}) for precision in precisions for layout in layouts]


def _known(files: Sequence[Path]) -> Pace | None:
    """What the first of these files holds that is there."""
    return next((Pace(**read_json(file)) for file in files if file.exists()), None)


def _same(choice: Pace, other: Pace | None) -> bool:
    return other is not None and replace(other, seconds={}) == choice


def _probed(choices: Sequence[Pace], steps: Callable[[Sequence[Pace]], list[float | None]]) -> Pace:
    took = steps(choices)
    seconds = {_label(choice): taken for choice, taken in zip(choices, took, strict=True) if taken is not None}
    best = min(choices, key=lambda choice: seconds.get(_label(choice), float("inf")))
    first = seconds.get(_label(choices[0]), float("inf"))
    if seconds and seconds[_label(best)] > WORTH_IT * first:
        best = choices[0]
    return replace(best, seconds=seconds)


def _label(pace: Pace) -> str:
    return f"{pace.precision} {'channels_last' if pace.channels_last else 'contiguous'}"


def _tell(config: RunConfig, pace: Pace, *, before: bool) -> None:
    asked = " ".join(f"trainer.{key}=auto" for key in ("precision", "channels_last") if getattr(config.trainer, key) == "auto")
    took = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in pace.seconds.items())
    log.info("%s: %s (ms a step: %s%s)", asked, _label(pace), took, "; as before" if before else "")


def _key(config: RunConfig, device: torch.device) -> str:
    """What a choice holds for: strategies, rates and batch sizes of a study are compared at one and the same precision."""
    model, trainer = config.model, config.trainer
    known = [model.source, model.name, model._target_, model.kwargs, model.repo, model.image_size, config.dataset.in_chans]
    known += [trainer.precision, trainer.channels_last]
    known.append(torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Compiled:
    """The forward of a network, compiled in place: its names, its state and its copies are those of before.

    What cannot be compiled runs as it is, and one line says why. So do parts of the network, which replay it on absent images.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._forward = torch.compile(net._call_impl)
        self._before = _compile_seconds()
        self.failed = False

    def use(self, whole: bool) -> None:
        """Whether the network's forward is the compiled one; it has to run as it is where it is followed call by call."""
        self._net._compiled_call_impl = self._call if whole and not self.failed else None

    @property
    def seconds(self) -> float | None:
        """Wall seconds that compiling has taken so far; None if it has failed."""
        return None if self.failed else _compile_seconds() - self._before

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        if any(isinstance(each, Absent) for each in args):
            return self._net._call_impl(*args, **kwargs)
        try:
            return self._forward(*args, **kwargs)
        except TorchDynamoException as error:
            self.failed = True
            self.use(False)
            told = str(getattr(error, "inner_exception", error)).strip()  # else its first line names the backend only
            reason = told.partition("\n")[0] or type(error).__name__
            log.warning("trainer.compile=true: going on without, since this network cannot be compiled here (%s)", reason)
            return self._net(*args, **kwargs)


def _compile_seconds() -> float:
    """Of everything that this process has compiled."""
    from torch._dynamo.utils import calculate_time_spent

    return float(calculate_time_spent().get("total_wall_time", 0.0))
