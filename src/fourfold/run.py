"""The story of one experiment."""

import logging
import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fourfold import checkpoint, drift, exact, freeze, identity, imports, metrics, models
from fourfold.assembly import Parts, assemble, overfitting
from fourfold.batched import Trained
from fourfold.config import RunConfig
from fourfold.files import append_jsonl, lock, read_json, read_jsonl, replacing, write_json, write_jsonl
from fourfold.interrupts import Wish, listening
from fourfold.loop import NonFiniteLoss, evaluate, kernels_tried, train_one_epoch
from fourfold.memory import OutOfMemory, Portion, measure_peak, release, watched
from fourfold.mistakes import Answers
from fourfold.profiler import profiling
from fourfold.ranks import Ranks, joined
from fourfold.records import asdict
from fourfold.result import describe, headline
from fourfold.seeding import seed_everything
from fourfold.stock import Stock
from fourfold.tracking import Tracker, open_tracker
from fourfold.tracking.console import Display
from fourfold.trial import NoTrial, Pruned, Stopped, Trial

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path,
    overrides: tuple[str, ...] = (),
    *,
    run_id: str | None = None,
    trial: Trial | None = None,
    drive: "Drive | None" = None,
    shared: Stock | None = None,
) -> dict[str, Any]:
    """Train, choose on validation, test once, and leave `result.json` in `folder`; a finished run is only read.

    An interrupted run goes on from its last checkpoint, and so does one that ran out of memory, with smaller micro-batches (see
    `memory`). Under torchrun every process calls this; the first one writes.

    Args:
        config: The whole run, validated.
        folder: Where everything of this run lies. Created.
        overrides: What the user typed, for names and records.
        run_id: Identity of the run; by default that of `config`.
        trial: The search that asks for this run, if any.
        drive: Tells the story to its end; by default alone, every epoch by itself.
        shared: What runs of this process have in common.

    Returns:
        The result, as in `result.json`.

    Raises:
        ConfigError: the config does not fit the data or the model.
        NonFiniteLoss: the run has diverged.
        OutOfMemory: not even one image at a time fits.
        Pruned: the search has ended it. A checkpoint was written.
        freeze.FrozenMoved: something frozen has changed.
        Stopped: the W&B page's Stop button has ended it, and only it. A checkpoint was written.
        KeyboardInterrupt: Ctrl-C or SIGTERM has ended the process. A checkpoint was written.
    """
    imports.end()
    folder.mkdir(parents=True, exist_ok=True)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    config = overfitting(config) if config.trainer.overfit else config
    with joined(config.trainer.device) as ranks, _alone(folder, ranks), _failure_kept(folder), listening() as interrupted:
        if (folder / "result.json").exists():
            log.info("%s is finished: nothing to do", folder)
            return read_json(folder / "result.json")
        run_id = run_id or identity.run_id(asdict(config))
        trial = trial or NoTrial()
        given = Given(config, folder, overrides, run_id, trial, ranks, interrupted, shared, alone=drive is None)
        result = (drive or alone)(_tracked(given))
        ranks.wait()
        return result


@dataclass(frozen=True)
class Given:
    """What a story begins with."""

    config: RunConfig
    folder: Path
    overrides: tuple[str, ...]
    run_id: str
    trial: Trial
    ranks: Ranks
    interrupted: Wish
    shared: Stock | None
    alone: bool  # no other run is told at the same time


@dataclass(frozen=True)
class Due:
    """An epoch that a story is about to train. Who drives it may do so in its place, together with those of other stories."""

    parts: Parts
    interrupted: Wish


# who trains an epoch in the place of a story, and fails, throws the error into it
Story = Generator[Due, Trained | None, dict[str, Any]]
Drive = Callable[[Story], dict[str, Any]]


def alone(story: Story) -> dict[str, Any]:
    """Tell a story to its end; it trains its epochs itself."""
    while True:
        try:
            next(story)
        except StopIteration as end:
            return end.value


def _tracked(given: Given) -> Story:
    """The story, told to whoever listens."""
    config, folder, trial = given.config, given.folder, given.trial
    tracking = Tracker()
    if given.ranks.first:
        tracking = open_tracker(config, folder, run_id=given.run_id, overrides=given.overrides, trial=trial)
    try:
        with tracking as tracker:  # from here on, so that a run that fails before its first epoch is recorded as well
            return (yield from _within_memory(given, tracker))
    finally:
        if tracking.hint:
            log.info(tracking.hint)


def _within_memory(given: Given, tracker: Tracker) -> Story:
    """The story, told on with smaller portions each time that memory runs out."""
    config, folder = given.config, given.folder
    while True:
        portion = Portion.of(config.trainer, folder)
        try:
            return (yield from _story(given, portion, tracker))
        except OutOfMemory as error:
            release(error)
            if error.runs > 1:
                log.warning("out of memory with %d heads at once: going on from the last checkpoint with fewer", error.runs)
                continue
            portion.smaller(error, config.trainer.batch_size).save(folder)
            log.warning(_told(error, Portion.of(config.trainer, folder), config))


def _told(error: OutOfMemory, portion: Portion, config: RunConfig) -> str:
    """How a run goes on that ran out of memory, in one line."""
    micro = -(-config.trainer.batch_size // portion.accumulate)
    batch_norm = ", over which batch norm that learns now takes its statistics" if error.training else ""
    return (
        f"out of memory in {'training' if error.training else 'evaluation'} ({error}): going on from the last checkpoint with "
        f"trainer.accumulate={portion.accumulate} (micro-batches of {micro}{batch_norm}) and "
        f"trainer.eval_batch_size={portion.eval_batch_size}"
    )


def _story(given: Given, portion: Portion, tracker: Tracker) -> Story:
    config, folder, trial, ranks = given.config, given.folder, given.trial, given.ranks
    seed_everything(config.seed, config.trainer.deterministic)
    measure_peak(ranks.device)
    parts = assemble(portion.into(config), folder, ranks, given.shared)
    state = parts.state
    if ranks.first:
        _record_start(config, parts, folder)

    title = f"{config.dataset.name} {config.model.name} {identity.strategy(asdict(config))}"
    display = Display(ranks.first and config.trainer.progress and given.alone, config.trainer.epochs, title)
    with display, profiling(config.trainer.profile and ranks.first, folder) as profile_step:
        tracker.watch(parts.net)
        interval = checkpoint.Interval(config.trainer.checkpoint_seconds, state.seconds)
        while not parts.done():
            with watched(ranks.world, training=False):
                parts.enter_phase()
            display.epoch(state.epoch, parts.steps)
            trained = yield Due(parts, given.interrupted)
            row = _train(parts, given.interrupted, folder, display, profile_step, trained)
            validated = parts.validated_after(state.epoch - 1)
            improved = validated and _validate(parts, row, None if trained is None else trained.validated)
            if ranks.first:
                append_jsonl(folder / "metrics.jsonl", row)
                tracker.log(row)
                display.row(row)

            due = ranks.any(parts.done() or interval.over(state.seconds))
            if improved or due:
                with interval.saving(state.seconds) if due else nullcontext():
                    parts.save(folder, best=improved, due=due)
            if validated:
                trial.report(state.scores[-1], state.epoch - 1)
                if trial.should_prune():
                    parts.save(folder)
                    write_json(
                        folder / "pruned.json", {"epoch": state.epoch - 1, "reason": "behind the other trials of its cell"}
                    )
                    raise Pruned(f"pruned after epoch {state.epoch - 1}")
            if ranks.any(tracker.stop_requested):
                parts.save(folder)
                raise Stopped(f"stopped from the W&B page after epoch {state.epoch - 1}: the same command goes on from there")

        tested = _test(parts, folder)
        with watched(ranks.world, training=False):
            sample = parts.sample() if parts.shared is None else None  # it was lent what does not move
            changes = drift.measure(parts.model, parts.start, sample, parts.kit)
        result = describe(parts, config, portion, given.run_id, given.overrides, tested, changes)
        if ranks.first:
            tracker.summary(headline(result))
            tracker.log_model(_merged(parts, folder) if parts.model.adapters else folder / "best.pt")
            write_json(folder / "result.json", result)
    return result


def _train(
    parts: Parts,
    interrupted: Callable[[], bool],
    folder: Path,
    display: Display,
    profile_step: Callable[[], None],
    trained: Trained | None,
) -> dict[str, float]:
    """What remains of one epoch, unless it was trained already; counts the epoch, and begins the row that records it."""
    state, ranks = parts.state, parts.ranks
    l2 = exact.penalty(parts, state.epoch)
    if l2 is not None:
        trained = exact.fit(parts, interrupted)
    trained = trained or _train_alone(parts, interrupted, display, profile_step)
    state.seconds += trained.seconds
    if trained.error is not None:
        raise trained.error
    if not trained.whole:
        parts.save(folder)
        raise KeyboardInterrupt(
            f"stopped and saved at epoch {state.epoch}, step {state.step_in_epoch} of {parts.steps}: "
            "the same command goes on from there"
        )
    state.train_loss = ranks.total(state.loss_sum)[0] / state.images
    row = {"epoch": state.epoch, "step": state.step, "lr": parts.set_rate(state.step - 1), "train/loss": state.train_loss}
    state.epoch, state.step_in_epoch, state.loss_sum, state.images = state.epoch + 1, 0, 0.0, 0
    return row | ({} if l2 is None else {"l2": l2}) | {"seconds": state.seconds}


def _train_alone(parts: Parts, interrupted: Callable[[], bool], display: Display, profile_step: Callable[[], None]) -> Trained:
    state, ranks = parts.state, parts.ranks
    started = time.perf_counter()
    parts.begin_to_move()

    def on_step(loss: Callable[[], float], lr: float) -> None:
        display.step(loss, lr)
        profile_step()

    with watched(ranks.world, training=True), kernels_tried():
        whole = train_one_epoch(
            parts.trained,
            parts.train.at(state.epoch, start_step=state.step_in_epoch, stop_step=parts.steps),
            parts.kit,
            parts.optimizer,
            state,
            images_in=parts.train.images_in,
            set_rate=parts.set_rate,
            ema=parts.ema,
            should_stop=lambda: ranks.any(interrupted()),
            on_step=on_step,
        )
    return Trained(whole, time.perf_counter() - started)


def _validate(parts: Parts, row: dict[str, float], values: dict[str, Any] | None) -> bool:
    """Measure the validation split, unless that was done already, add it to the row, and say whether this is the best epoch."""
    state = parts.state
    limit = parts.config.trainer.limit_eval_batches
    started = time.perf_counter()
    if values is None:
        with watched(parts.ranks.world, training=False):
            values = evaluate(parts.validated, parts.val.at(0, stop_step=limit), parts.kit, parts.measures)
        values.pop("confusion", None)
    row.update({f"val/{name}": value for name, value in values.items()})
    if not math.isfinite(values["loss"]):
        raise NonFiniteLoss(
            f"the validation loss is {values['loss']} after epoch {row['epoch']}, step {row['step']}, at a learning rate of "
            f"{row['lr']:.3g}: try a lower optimizer.lr, or trainer.clip_norm=1.0"
        )
    state.seconds += time.perf_counter() - started
    row["seconds"] = state.seconds
    state.scores.append(metrics.score(row, parts.monitor))
    if state.best_score is not None and state.scores[-1] <= state.best_score:
        return False
    state.best_score, state.best_epoch, state.best = state.scores[-1], int(row["epoch"]), values
    return True


def _test(parts: Parts, folder: Path) -> dict[str, Any]:
    """Prove the freezing, restore the best weights, and open the test split: nothing is left to choose."""
    state = parts.state
    running = state.proofs[-1]
    state.proofs[-1] = freeze.end_proof(parts.net, running, state.epoch - 1, parts.fingerprint)
    best = checkpoint.load(folder / "best.pt", parts.ranks.device)
    assert best is not None, "the last epoch is always validated, so there is a best one"
    checkpoint.put(checkpoint.weights_of(best), parts.net, parts.unmoved, parts.moving_part)
    parts.check_features()
    chosen = replace(running, epochs=(state.best_epoch,) * 2)
    state.proofs.append(freeze.end_proof(parts.net, chosen, state.best_epoch, parts.fingerprint))
    if parts.ranks.first:
        checkpoint.complete(folder / "best.pt", best, parts.net, parts.apart)
    limit = parts.config.trainer.limit_eval_batches
    answers = Answers()
    classes = parts.splits.task == "classification"
    with watched(parts.ranks.world, training=False):
        net, test, images = parts.open_test()
        tested = evaluate(
            net, test.at(0, stop_step=limit), parts.kit, parts.measures, on_batch=answers.add if classes else None
        )
    if classes:
        answers.keep(images, limit, parts.splits.classes, folder, parts.ranks)
    return tested


def _merged(parts: Parts, folder: Path) -> Path:
    """Write the best weights as those of a plain network, for whoever starts from this run; adapters are in `best.pt`."""
    with replacing(folder / "merged.pt") as path:
        torch.save({"model": models.merged(parts.model)}, path)
    return folder / "merged.pt"


def _record_start(config: RunConfig, parts: Parts, folder: Path) -> None:
    """Write what the run is made of, and drop the rows of epochs that a checkpoint does not know, since they are made again."""
    write_json(folder / "config.json", asdict(config))
    parts.splits.manifest.save(folder / "manifest.json")
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if row["epoch"] < parts.state.epoch]
    write_jsonl(folder / "metrics.jsonl", rows)


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Wait until no other process works in this folder: whoever comes second finds the run finished, or goes on with it."""
    if ranks.world > 1:
        yield
        return
    with lock(folder / ".lock"):
        yield


@contextmanager
def _failure_kept(folder: Path) -> Iterator[None]:
    """Leave the reason of a failed run in `failure.json`; a run that ends well removes it."""
    try:
        yield
    except (Pruned, Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        write_json(folder / "failure.json", reason)
        raise
    for left in ("failure.json", "pruned.json"):
        (folder / left).unlink(missing_ok=True)
