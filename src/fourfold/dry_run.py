"""A run tried out: its parts are built, its first steps trained and timed, and nothing is left behind."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fourfold import freeze, pace
from fourfold.assembly import Parts, assemble, overfitting
from fourfold.config import RunConfig
from fourfold.estimate import Estimate, training_seconds, validations
from fourfold.loop import Batch, evaluate, train_one_epoch
from fourfold.ranks import joined
from fourfold.result import parameters
from fourfold.seeding import as_before, seed_everything

NOWHERE = Path("no checkpoint")
FEW = 16  # images with which a CPU warms up and validates, where time grows with them; a GPU gets all that it will hold at once


def dry_run(config: RunConfig, *, steps: int = 2, threads: int | None = None) -> Estimate:
    """Train the first steps of the first and of the last phase, and validate one batch or a part of it.

    Weights and device are the run's own, so the weights may be fetched. It writes no file, tells no tracker and leaves the
    test split sealed. Random numbers, torch's threads and its choice of algorithms are afterwards what they were before.

    Args:
        config: Validated; `model.weights` a tag, a file or None.
        steps: Optimizer steps in each phase, of which the first is not timed; at least 2.
        threads: Of torch, where the config leaves them open.

    Raises:
        Exception: whatever the run itself would raise so early.
    """
    config = overfitting(config) if config.trainer.overfit else config
    config = replace(pace.plain(config), cache=replace(config.cache, images="off"))  # nothing is probed, compiled or kept
    with as_before(), joined(config.trainer.device) as ranks:
        if wanted := config.trainer.threads or threads:
            torch.set_num_threads(wanted)
        seed_everything(config.seed, config.trainer.deterministic)
        # what is stored once per image is no step's cost, and must not be computed for a trial
        config = replace(config, cache=replace(config.cache, activations="off"))
        parts = assemble(config, NOWHERE, ranks)
        first_step, (first, last) = _train(parts, steps)
        eval_seconds = _evaluate(parts)
        return _estimate(parts, first_step, first, last, eval_seconds)


def _train(parts: Parts, steps: int) -> tuple[float, tuple[float, float]]:
    """Seconds of the very first step, and of a step in the first phase and in the last. Every phase is entered on the way."""
    phases, state = parts.plan.phases, parts.state
    took = []
    for i, phase in enumerate(phases):
        state.epoch, state.step = phase.start, phase.start * parts.steps
        parts.enter_phase()
        if i in (0, len(phases) - 1):
            took.append(_steps_timed(parts, steps))
    freeze.end_proof(parts.net, state.proofs[-1], state.epoch)
    return took[0][0], (took[0][1], took[-1][1])


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
    yield first if parts.ranks.device.type != "cpu" else [[part[:FEW] for part in first[0]]]
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
    """Seconds of the first validation batch, on a CPU reckoned from a few of its images; a GPU gets a batch to warm up."""
    whole = parts.val.images_in(0)
    if parts.ranks.device.type == "cpu":
        few = min(FEW, whole)
        started = time.perf_counter()
        evaluate(parts.validated, [[parts.val.read([*range(few)])]], parts.kit, parts.measures)
        return (time.perf_counter() - started) * whole / few
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        evaluate(parts.validated, parts.val.at(0, stop_step=1), parts.kit, parts.measures)
    return time.perf_counter() - started


def _estimate(parts: Parts, first_step: float, first: float, last: float, eval_seconds: float) -> Estimate:
    trainer, sizes = parts.config.trainer, parts.train
    steps_of_an_epoch = sum(sizes.images_in(step) for step in range(parts.steps)) / sizes.images_in(0)  # the last may be less
    starts = [phase.start for phase in parts.plan.phases]
    seconds = training_seconds(starts, trainer.epochs, first * steps_of_an_epoch, last * steps_of_an_epoch)
    per_image = eval_seconds / parts.val.images_in(0)
    limit = trainer.limit_eval_batches
    evaluated = [parts.val.images] * validations(trainer.epochs, trainer.val_every) + [len(parts.splits.test)]
    most = limit * trainer.eval_batch_size if limit else None
    seconds += per_image * sum(images if most is None else min(images, most) for images in evaluated)
    counts = parameters(parts)
    return Estimate(
        trainable=counts["trainable"],
        total=counts["total"],
        epochs=trainer.epochs,
        steps=parts.steps,
        eval_batches=min(len(parts.val), limit or len(parts.val)),
        first_step_seconds=first_step,
        step_seconds=max(first, last),
        eval_seconds=eval_seconds,
        seconds=seconds,
    )
