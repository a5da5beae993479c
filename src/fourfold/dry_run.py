"""A run tried out: its parts are built, its first steps trained and timed, and nothing is left behind."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fourfold import freeze, pace
from fourfold.assembly import Parts, assemble, overfitting
from fourfold.config import CacheConfig, RunConfig
from fourfold.estimate import Estimate, training_seconds, validations
from fourfold.loop import Batch, evaluate, kernels_tried, train_one_epoch
from fourfold.optim import Lbfgs
from fourfold.ranks import joined
from fourfold.result import parameters
from fourfold.seeding import as_before, seed_everything
from fourfold.stock import Stock

NOWHERE = Path("no checkpoint")
FEW = 8  # images with which a CPU warms up and validates, where time grows with them; a GPU gets all that it will hold at once


@dataclass(frozen=True)
class _Timed:
    """What one phase costs, in seconds."""

    step: float
    image: float  # validated
    stored: bool  # on activations that have been stored


def dry_run(
    config: RunConfig, *, steps: int = 2, threads: int | None = None, stored: bool = False, shared: Stock | None = None
) -> Estimate:
    """Train the first steps of the first and of the last phase, and validate one batch or a part of it.

    Weights and device are the run's own, so the weights may be fetched. It leaves no file (but in the cache, for runs that have
    `shared` in common), tells no tracker and leaves the test split sealed. Random numbers, torch's threads and its choice of
    algorithms are afterwards what they were before.

    Args:
        config: Validated; `model.weights` a tag, a file or None.
        steps: Optimizer steps in each phase, of which the first is not timed; at least 2.
        threads: Of torch, where the config leaves them open.
        stored: Reckon with the steps on stored activations where the run will store them. They are tried besides; by default
            every step is that of the whole network.
        shared: What runs of this process have in common. One that trains nothing but a head takes its steps on activations that
            are stored where these runs will find them, and no step of the whole network, which none of them will take.

    Raises:
        Exception: whatever the run itself would raise so early.
    """
    config = overfitting(config) if config.trainer.overfit else config
    plain = pace.plain(config)  # nothing is probed or compiled
    keep = shared is not None and shared.serves(config) and plain.trainer == replace(config.trainer, compile=False)
    config = plain if keep else replace(plain, cache=replace(config.cache, images="off"))
    with as_before(), joined(config.trainer.device) as ranks:
        if wanted := config.trainer.threads or threads:
            torch.set_num_threads(wanted)
        seed_everything(config.seed, config.trainer.deterministic)
        # what is stored once per image is no step's cost, and must not be computed for a trial
        parts = assemble(replace(config, cache=replace(config.cache, activations="off")), NOWHERE, ranks, shared)
        with kernels_tried() if stored else nullcontext():  # seconds that only who wants to know the pace should spend
            first_step, phases = _train(parts, steps, config.cache if stored or keep else parts.config.cache, keep)
        return _estimate(parts, first_step, _evaluate(parts), *phases)


def _train(parts: Parts, steps: int, cache: CacheConfig, keep: bool) -> tuple[float, tuple[_Timed, _Timed]]:
    """Seconds of the very first step, and of the first phase and the last. Every phase is entered on the way."""
    phases, state = parts.plan.phases, parts.state
    firsts, took = [], []
    for i, phase in enumerate(phases):
        state.epoch, state.step = phase.start, phase.start * parts.steps
        parts.enter_phase()
        if i in (0, len(phases) - 1):
            whole = None if keep else _steps_timed(parts, steps)
            with _on_stored(parts, steps, cache, keep) as ready:
                fast = (_steps_timed(parts, steps), _evaluate(parts)) if ready else None
            whole = whole or (fast[0] if fast else _steps_timed(parts, steps))
            firsts.append(whole[0])
            took.append(_Timed(fast[0][1], fast[1], True) if fast else _Timed(whole[1], 0, False))
    freeze.end_proof(parts.net, state.proofs[-1], state.epoch)
    return firsts[0], (took[0], took[-1])


@contextmanager
def _on_stored(parts: Parts, steps: int, cache: CacheConfig, keep: bool) -> Iterator[bool]:
    """The parts as they will be in this phase where activations are stored, with no more images than the steps need; false, and
    nothing is changed, where every step runs the whole network, or one on stored activations would not tell a run's. With
    `keep`, the activations stay where they are stored."""
    chosen = parts.train.loader.sampler in ("weighted", "subset")  # by positions among all images
    if cache.activations == "off" or chosen or isinstance(parts.optimizer, Lbfgs):
        yield False
        return
    before = {name: getattr(parts, name) for name in ("config", "splits", "stored", "trained", "train", "val")}
    manifest = parts.splits.manifest
    val = max(FEW, parts.val.batch_size) if parts.ranks.device.type == "cuda" else FEW
    few = replace(manifest, train=manifest.train[: steps * parts.train.batch_size], val=manifest.val[:val])
    own = parts.config.paths
    with nullcontext(own.cache) if keep else TemporaryDirectory() as folder:
        all_of_them = replace(parts.config.trainer, limit_train_batches=None, limit_eval_batches=None)
        parts.config = replace(parts.config, cache=cache, paths=replace(own, cache=folder), trainer=all_of_them)
        parts.splits = replace(parts.splits, manifest=few)
        try:
            parts.get_ready()
            yield parts.stored is not None and parts.stored.train is not None
        finally:
            for name, value in before.items():
                setattr(parts, name, value)


def _steps_timed(parts: Parts, steps: int) -> tuple[float, float]:
    """Seconds of the first step, on a CPU of a few images, and of each of the others on average; reading is part of a step."""
    ends = [time.perf_counter()]

    def on_step(loss: Callable[[], float], lr: float) -> None:
        loss()  # waits for the device
        ends.append(time.perf_counter())

    train_one_epoch(
        parts.trained,
        _warming_up(parts, _whole_steps(parts, steps)),
        parts.kit,
        parts.optimizer,
        parts.state,
        images_in=lambda step: parts.train.images_in(0),
        set_rate=parts.set_rate,
        ema=parts.ema,
        should_stop=lambda: False,
        on_step=on_step,
    )
    return ends[1] - ends[0], (ends[-1] - ends[1]) / (len(ends) - 2)


def _warming_up(parts: Parts, steps: Iterator[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
    first = next(steps)
    plain = parts.ranks.device.type == "cpu" and parts.stored is None
    yield [[part[:FEW] for part in first[0]]] if plain else first
    yield from steps


def _whole_steps(parts: Parts, count: int) -> Iterator[Sequence[Batch]]:
    """Steps of as many images as the first has; where an epoch has too few of them, the next epochs' as well."""
    whole = max(1, parts.train.images // parts.train.batch_size)
    epoch = parts.state.epoch
    while count > 0:
        part = min(count, whole, parts.steps)
        yield from parts.train.at(epoch, stop_step=part)
        epoch, count = epoch + 1, count - part


def _evaluate(parts: Parts) -> float:
    """Seconds of validating an image, by the first batch, on a CPU by a few of its images; a GPU gets a batch to warm up."""
    whole = parts.val.images_in(0)
    if parts.ranks.device.type == "cpu":
        few = min(FEW, whole)
        started = time.perf_counter()
        evaluate(parts.validated, [[parts.val.read([*range(few)])]], parts.kit, parts.measures)
        return (time.perf_counter() - started) / few
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        evaluate(parts.validated, parts.val.at(0, stop_step=1), parts.kit, parts.measures)
    return (time.perf_counter() - started) / whole


def _estimate(parts: Parts, first_step: float, image: float, first: _Timed, last: _Timed) -> Estimate:
    """What a whole run takes, by what was timed.

    Args:
        parts: As they are without stored activations.
        first_step: Seconds.
        image: Seconds of the whole network for an image, in evaluation.
        first: The first phase.
        last: The last one.
    """
    trainer, sizes = parts.config.trainer, parts.train
    steps_of_an_epoch = sum(sizes.images_in(step) for step in range(parts.steps)) / sizes.images_in(0)  # the last may be less
    starts = [phase.start for phase in parts.plan.phases]
    limit = trainer.limit_eval_batches
    most = limit * trainer.eval_batch_size if limit else math.inf
    val, test = min(parts.val.images, most), min(len(parts.splits.test), most)
    seen = [phase.image if phase.stored else image for phase in (first, last)]  # seconds of a validation image
    validated = validations(trainer.epochs, trainer.val_every) * val / trainer.epochs  # images per epoch
    costs = [phase.step * steps_of_an_epoch + each * validated for phase, each in zip((first, last), seen, strict=True)]
    heads = last.stored and Stock.serves(parts.config)  # test images are stored, too
    shown = sizes.shown(range(trainer.epochs), trainer.limit_train_batches)
    trained = sizes.images if shown is None else len(shown)
    every = trained * (parts.config.cache.views or 1) + val + test * heads
    counts = parameters(parts)
    return Estimate(
        trainable=counts["trainable"],
        total=counts["total"],
        epochs=trainer.epochs,
        steps=parts.steps,
        eval_batches=min(len(parts.val), limit or len(parts.val)),
        first_step_seconds=first_step,
        step_seconds=max(first.step, last.step),
        eval_seconds=image * parts.val.images_in(0),
        seconds=training_seconds(starts, trainer.epochs, *costs) + test * (seen[1] if heads else image),
        shared_seconds=image * every * sum(phase.stored for phase in {id(first): first, id(last): last}.values()),
    )
