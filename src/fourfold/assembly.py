"""The parts of one run, built in the order in which they need each other, and put back where a checkpoint left them."""

import inspect
import logging
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fourfold import (
    adaptation,
    checkpoint,
    data,
    drift,
    features,
    freeze,
    losses,
    metrics,
    models,
    optim,
    pace,
    regularizers,
    schedule,
    terms,
)
from fourfold.config import ConfigError, RunConfig, nearest
from fourfold.loop import Kit, ready
from fourfold.metrics import MetricCollection
from fourfold.models.fusing import FusedPrefix
from fourfold.ranks import Ranks
from fourfold.scores import HEADLINE
from fourfold.state import State
from fourfold.stock import Stock
from fourfold.zoo import ModelEmaV3

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """Everything that a run works with. `net` is the bare network; `trained` is what the loop sees: the network, in
    DistributedDataParallel under torchrun, or what lies behind its frozen prefix."""

    config: RunConfig
    ranks: Ranks
    splits: data.Splits
    model: models.TransferModel
    net: nn.Module
    trained: nn.Module
    plan: freeze.Plan
    images: tuple[data.Batches, data.Batches]  # of training and validation
    train: data.Batches
    val: data.Batches
    steps: int  # optimizer steps of an epoch
    kit: Kit
    measures: MetricCollection
    monitor: str
    optimizer: Optimizer
    ema: ModelEmaV3 | None
    state: State
    compiled: pace.Compiled | None
    start: dict[str, Tensor]  # what may change, as it was before training
    unmoved: frozenset[str]  # what stays frozen from the first epoch to the last, which no checkpoint needs to hold
    known: features.Known
    unlabelled: int = 0  # images without labels that take part
    shared: Stock | None = None  # with other runs of this process
    stored: features.Features | None = None  # stored activations of the present phase
    ready_for: int | None = None  # the phase for which `trained`, `train` and `val` are
    best: dict[str, Any] | None = None  # the checkpoint of the best epoch, where it is not on disk yet

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and kept, the averaged one where there is one; as `val` needs it."""
        if self.ema is None:
            return self.net if self.stored is None else self.stored.split.suffix
        return self.ema.module if self.stored is None else self.stored.split.suffix_of(self.ema.module)

    def done(self) -> bool:
        """Whether there is no epoch left, or early stopping has waited long enough."""
        patience = self.config.trainer.patience
        over = self.state.epoch >= self.config.trainer.epochs
        return over or (patience is not None and self.state.step_in_epoch == 0 and self.state.waited >= patience)

    def validated_after(self, epoch: int) -> bool:
        """Whether the epoch with this index, from 0, is followed by a validation."""
        return (epoch + 1) % self.config.trainer.val_every == 0 or epoch + 1 == self.config.trainer.epochs

    def factor(self, step: int) -> float:
        """On every group's learning rate, at a step of the run in the present epoch."""
        factor = schedule.factor(self.config.scheduler, step, self.steps, self.config.trainer.epochs, self.state.scores)
        return factor * self.plan.phases[self.plan.phase_at(self.state.epoch)].lr_mult

    def set_rate(self, step: int) -> float:
        """Set every group's learning rate for a step of the run; returns the head's."""
        factor = self.factor(step)
        optim.set_factor(self.optimizer, factor)
        return self.config.optimizer.lr * factor

    def enter_phase(self) -> None:
        """Begin the phase of the coming epoch if it is a new one: unfreeze, let the new groups learn, take a proof."""
        epoch, proofs = self.state.epoch, self.state.proofs
        phase = self.plan.phase_at(epoch)
        if len(proofs) <= phase:
            if proofs:
                proofs[-1] = freeze.end_proof(self.net, proofs[-1], epoch - 1, self.fingerprint)
                freeze.apply(self.net, self.plan.phases[phase], self.plan.norm_stats)
                joining = [group for group in self.plan.groups if group.phase == phase]
                optim.extend(self.optimizer, self.net, joining, self.config.optimizer)
            proofs.append(freeze.begin_proof(self.net, phase, epoch, self.fingerprint))
        if self.ready_for != phase:
            self.get_ready()
            self.ready_for = phase

    def get_ready(self) -> None:
        """Choose what the loop sees in this phase: the only place that knows whether activations are stored."""
        if self.compiled is not None:
            self.compiled.use(False)
        self.stored = None
        if reason := self._images_needed():
            log.info("every epoch runs the whole network: %s", reason)
            self.known.turn_to(None)
        else:
            frozen = self.state.proofs[-1].before  # taken when the phase began; what stood still since is still that
            self.stored = features.build(self.config, self.model, self.splits, self.kit, frozen, self.known, self._shown())
        if self.compiled is not None:
            self.compiled.use(self.stored is None or self.stored.train is None)
        self.trained, (self.train, self.val) = _wrap(self.net, self.ranks), self.images
        if self.stored is None:
            return
        self.val = _over(self.stored.val, self.val)
        if self.stored.train is not None:
            self.trained, self.train = self.stored.split.suffix, _over(self.stored.train, self.train)
        elif self.compiled is None and features.fuses(self.config, self.kit):
            self.trained = FusedPrefix(self.stored.split)

    def _images_needed(self) -> str | None:
        """Why stored activations cannot stand for the images, whatever is frozen."""
        if self.model.adapters:
            return "adapters learn from its first layers on"
        if regularizers.needs_images(self.config.regularizer):
            return f"regularizer={self.config.regularizer.name} shows its images to the starting network as well"
        if self.config.adapt.name not in ("none", "adabn"):
            return f"adapt={self.config.adapt.name} shows it other images as well"
        return None

    def _shown(self) -> tuple[list[int] | None, list[int] | None]:
        """Positions of the training and of the validation images that are still to be read, where these are not all."""
        trainer, (train, val) = self.config.trainer, self.images
        left = range(min(self.state.epoch, trainer.epochs - 1), trainer.epochs)
        return train.shown(left, trainer.limit_train_batches), val.shown([0], trainer.limit_eval_batches)

    def check_features(self) -> None:
        """Hold the stored activations against the whole network, from the image."""
        if self.stored is not None:
            features.check(self.stored, self.net, self.images[1], self.kit)

    def sample(self) -> drift.Sample | None:
        """The first validation images, as many as surely fit, or what a prefix that never moved has made of them; None where
        they come with a mask."""
        val = self.images[1]
        some = [*range(min(drift.SAMPLE, self.config.trainer.eval_batch_size, val.images))]
        if self.stored is not None and self.compiled is None and self._never_moved(self.stored.split.cut.frozen):
            rows, _ = self.stored.val.take(some, 0)
            inputs = tuple(row.to(self.ranks.device) for row in rows)
            return drift.Sample(self.stored.split.suffix, inputs, self.stored.split.cut.frozen)
        images, _, *mask = val.read(some)
        return None if mask else drift.Sample(self.net, (ready(images, self.kit),))

    def _never_moved(self, modules: tuple[str, ...]) -> bool:
        inside, now = tuple(f"{module}." for module in modules), self.net.state_dict()
        return all(torch.equal(now[name].cpu(), was) for name, was in self.start.items() if name.startswith(inside))

    def save(self, folder: Path, *, best: bool = False, due: bool = True) -> None:
        """Write the checkpoint from the first process; the others wait for it.

        Args:
            best: It is the best so far.
            due: False: a best one may wait in memory for the next that is.
        """
        if self.ranks.first:
            now = checkpoint.content_of(
                self.state, self.net, self.optimizer, self.kit.scaler, self.ema, self.unmoved, self.moving_part, self.apart
            )
            if best:
                self.best = now if due else checkpoint.copy_of(now)
            if due:
                checkpoint.save(folder, now, self.best)
                self.best = None
        if due:
            self.ranks.wait()

    @property
    def apart(self) -> str | None:
        """Where the runs of a study keep the frozen network whose heads they train, as a path from their folders; None where
        each keeps it in its checkpoint."""
        whole = self.config.logger.wandb.log_model  # since it is uploaded
        if self.shared is None or whole or not self.unmoved:
            return None
        return f"../frozen/{self.state.proofs[-1].before[:24]}.pt"

    @cached_property
    def moving_part(self) -> str:
        """The module in which all is that may move."""
        owners = [name.rpartition(".")[0].replace(".", "/") for name in self.net.state_dict() if name not in self.unmoved]
        return posixpath.commonpath(owners or [""]).replace("/", ".")

    def begin_to_move(self) -> None:
        """Something is going to be trained: no fingerprint that was taken before says what is frozen afterwards."""
        if self.shared is not None:
            self.shared.fingerprints.forget()

    def fingerprint(self, tensors: Mapping[str, Tensor]) -> str:
        """As `freeze.fingerprint`, once for runs that share their tensors."""
        return (freeze.fingerprint if self.shared is None else self.shared.fingerprints)(tensors)

    def open_test(self) -> tuple[nn.Module, data.Batches, data.Batches]:
        """Break the seal of the test split, once: what answers, to which batches, and the images of these.

        The whole network reads the images. Where runs differ in nothing but their heads it does so once for all of them: its
        answer to each image has to be that of the stored activation, and their heads are tested on that.
        """
        images = data.in_order(self.splits.test.open(), self.config, self.ranks.rank, self.ranks.world)
        if self.stored is None or self.shared is None:
            return self.net, images, images
        if self.compiled is not None:
            self.compiled.use(False)
        rows = features.of_test(self.stored, self.config, self.net, self.splits, images, self.kit)
        if rows is None:
            return self.net, images, images
        return self.stored.split.suffix, _over(rows, images), images


def assemble(config: RunConfig, folder: Path, ranks: Ranks, shared: Stock | None = None) -> Parts:
    """Build the parts of a run; where `folder` holds a checkpoint, as they were when it was written.

    Args:
        shared: Lends what other runs of this process have built, to a run that trains nothing but its head; to any other what
            they have found out.

    Raises:
        ConfigError: something in the config does not fit the data or the model.
    """
    if ranks.device.type != "cuda":  # a machine may have a GPU that this run does not use
        config = replace(config, dataset=replace(config.dataset, loader=replace(config.dataset.loader, pin_memory=False)))
    shared = None if ranks.world > 1 else shared
    known = features.Known() if shared is None else shared.known
    if shared is not None and not shared.serves(config):
        shared, known = None, known.of_others()
    model = _model(config, ranks, shared)
    splits = _splits(config, model, shared)
    train, val = _batches(config, splits, ranks)
    net = model.net if shared is not None else _placed(model.net, config, ranks)  # what is lent is on the device
    plan = _plan(config, model, shared)
    config = _at_pace(config, net, plan, train, partial(_kit, splits=splits, model=model, ranks=ranks), folder, ranks)
    if config.trainer.channels_last:
        net = net.to(memory_format=torch.channels_last)
    kit = _kit(config, splits, model, ranks)

    unlabelled = terms.unlabelled(config, splits, model)
    if unlabelled is not None and config.adapt.name == "adabn":
        adaptation.recalibrate(net, (ready(images, kit) for images in terms.whole_batches(unlabelled)), kit)

    saved = checkpoint.load(folder / "last.pt", ranks.device)
    state = State() if saved is None else checkpoint.state_of(saved)
    phase = max(0, len(state.proofs) - 1)  # each phase that has begun has left a proof
    freeze.apply(net, plan.phases[phase], plan.norm_stats)
    held = frozenset(freeze.frozen(net))
    if shared is not None:
        shared.own(config, model, held)
    unmoved = held if len(plan.phases) == 1 else frozenset()
    optimizer = optim.create(net, [group for group in plan.groups if group.phase <= phase], config.optimizer)
    decay = config.trainer.ema_decay
    ema = None if decay is None else ModelEmaV3(net, decay=decay, use_warmup=True)
    # of the weights that the run starts from, so before a checkpoint is put back; after the average, which must not listen
    kit = replace(kit, penalty=terms.create(config, model, train, unlabelled, kit))
    start = drift.snapshot(net, plan.learned, unmoved)
    if saved is not None:
        if len(plan.phases) == 1:
            _refuse_others(net, state, folder)
        checkpoint.restore(saved, net, optimizer, kit.scaler, ema, unmoved)
        log.info("going on from epoch %d, step %d of %s", state.epoch, state.step, folder)
    compiled = pace.Compiled(net) if config.trainer.compile else None
    return Parts(
        unlabelled=0 if unlabelled is None else unlabelled.images,
        config=config,
        ranks=ranks,
        splits=splits,
        model=model,
        net=net,
        trained=net,
        plan=plan,
        images=(train, val),
        train=train,
        val=val,
        steps=min(len(train), config.trainer.limit_train_batches or len(train)),
        kit=kit,
        measures=_measures(splits, ranks, shared),
        monitor=_monitor(config, splits.task),
        optimizer=optimizer,
        ema=ema,
        state=state,
        compiled=compiled,
        start=start,
        unmoved=unmoved,
        known=known,
        shared=shared,
    )


def _model(config: RunConfig, ranks: Ranks, shared: Stock | None) -> models.TransferModel:
    """The network as its strategy and adaptation want it, before anything is frozen."""
    outputs = data.outline(config.dataset, config.seed).num_outputs
    if shared is not None:
        return shared.model(config, outputs, ranks.device)
    pretrained = config.freeze_strategy.pretrained
    both = config.regularizer.name == "co_tuning"
    model = models.create(config.model, outputs, in_chans=config.dataset.in_chans, pretrained=pretrained, source_head=both)
    model = models.adapt(model, config.freeze_strategy)
    if both:
        regularizers.add_source_head(model)
    if config.adapt.name == "dann":
        adaptation.add_domain_classifier(model.net, model.heads[0])
    return model


def _plan(config: RunConfig, model: models.TransferModel, shared: Stock | None) -> freeze.Plan:
    make = partial(freeze.plan, model, config.freeze_strategy, config.trainer.epochs)
    return make() if shared is None else shared.plan(config, make)


def _splits(config: RunConfig, model: models.TransferModel, shared: Stock | None) -> data.Splits:
    keep = config.cache.images
    if shared is not None and keep == "ram" and config.transform.augmentation == "none":
        keep = "off"  # what is computed of them is stored, and each seed's images in memory would be too many
    kept = (keep, Path(config.paths.cache))
    load = partial(data.load_splits, config.dataset, config.transform, model.preprocessing, config.seed, *kept)
    return load() if shared is None else shared.splits(config, load)


def _measures(splits: data.Splits, ranks: Ranks, shared: Stock | None) -> MetricCollection:
    if shared is not None:
        return shared.measures(splits.task, splits.num_outputs, ranks.device)
    return metrics.create(splits.task, splits.num_outputs).to(ranks.device)


def _refuse_others(net: nn.Module, state: State, folder: Path) -> None:
    """A checkpoint holds what learns. What is frozen has to be what it was."""
    if state.proofs and state.proofs[-1].before != freeze.fingerprint(freeze.frozen(net)):
        raise ConfigError(
            f"{folder} was begun from other weights than model.weights gives now: bring those back, or remove the folder to "
            "begin anew"
        )


def rehearse(config: RunConfig) -> None:
    """Build the parts from random weights on the CPU and let them go: what cannot run is refused before anything is trained.

    Raises:
        ConfigError: as `assemble` would, but for what only the weights could tell.
    """
    untrained = replace(pace.plain(config), model=replace(config.model, weights=None))
    assemble(untrained, Path("no checkpoint"), Ranks(0, 1, torch.device("cpu")))


def overfitting(config: RunConfig) -> RunConfig:
    """The same run without augmentation. On its one batch of images (`_batches`) any sound set-up must reach a loss near 0."""
    return replace(config, transform=replace(config.transform, augmentation="none", hflip=False, mixup=0.0, cutmix=0.0))


def _batches(config: RunConfig, splits: data.Splits, ranks: Ranks) -> tuple[data.Batches, data.Batches]:
    loader = config.dataset.loader
    if config.trainer.overfit:
        first = min(config.trainer.batch_size, len(splits.manifest.train))
        loader = replace(loader, sampler="subset", subset=list(range(first)))
    train = data.Batches(
        splits.train,
        batch_size=config.trainer.batch_size,
        accumulate=config.trainer.accumulate,
        loader=loader,
        seed=config.seed,
        shuffle=True,
        rank=ranks.rank,
        world=ranks.world,
    )
    return train, train if config.trainer.overfit else data.in_order(splits.val, config, ranks.rank, ranks.world)


def _over(activations: features.ActivationSet, images: data.Batches) -> data.Batches:
    """The same batches, of stored activations."""
    return data.Batches(
        activations,
        batch_size=images.batch_size,
        accumulate=images.accumulate,
        loader=replace(
            images.loader, num_workers=0, persistent_workers=False, pin_memory=images.loader.pin_memory and activations.on_host
        ),
        seed=images.seed,
        shuffle=images.shuffle,
    )


def _kit(config: RunConfig, splits: data.Splits, model: models.TransferModel, ranks: Ranks) -> Kit:
    trainer = config.trainer
    weights = None
    if trainer.loss.class_weights == "balanced":
        weights = data.class_weights(splits.class_counts).to(ranks.device)
    precision = trainer.precision
    if precision == "fp16" and ranks.device.type == "cpu":
        raise ConfigError("trainer.precision=fp16 needs a GPU, but this machine has none: choose bf16 or fp32")
    plain = replace(trainer.loss, label_smoothing=0.0, class_weights="none")
    return Kit(
        ranks=ranks,
        task=splits.task,
        loss=losses.create(trainer.loss, splits.task, weights),
        eval_loss=losses.create(plain, splits.task),
        prepare=data.normalizer(model.preprocessing).to(ranks.device),
        mix=data.mixer(config.transform, splits.num_outputs),
        autocast={"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
        scaler=torch.amp.GradScaler(ranks.device.type, enabled=precision == "fp16"),
        clip_norm=trainer.clip_norm,
        channels_last=trainer.channels_last is True,
        takes_mask="mask" in inspect.signature(model.net.forward).parameters,
        spread=1.0 if splits.scale is None else splits.scale.std,
    )


def _at_pace(
    config: RunConfig,
    net: nn.Module,
    plan: freeze.Plan,
    train: data.Batches,
    kit: Callable[[RunConfig], Kit],
    folder: Path,
    ranks: Ranks,
) -> RunConfig:
    """The run with its precision and memory format settled."""

    def steps(choices: Sequence[pace.Pace]) -> list[float | None]:
        freeze.apply(net, plan.phases[-1], plan.norm_stats)  # in which most learns
        (batches,) = train.at(0, stop_step=1)
        return pace.step_seconds(net, [kit(choice.into(config)) for choice in choices], batches)

    return pace.decided(config, folder, ranks, steps)


def _monitor(config: RunConfig, task: str) -> str:
    if config.trainer.monitor == "auto":
        return f"val/{HEADLINE[task]}"
    known = [f"val/{name}" for name in ("loss", *metrics.create(task, 2).keys()) if name != "confusion"]
    if config.trainer.monitor not in known:
        raise ConfigError(
            f"trainer.monitor={config.trainer.monitor} is not measured for dataset.task={task}: choose auto or one of "
            f"{', '.join(known)}{nearest(config.trainer.monitor, known)}"
        )
    return config.trainer.monitor


def _placed(net: nn.Module, config: RunConfig, ranks: Ranks) -> nn.Module:
    """The network on its device, before anything is frozen: synchronised batch norm replaces modules."""
    if config.trainer.sync_batchnorm and ranks.world > 1:
        if ranks.device.type != "cuda":
            raise ConfigError(
                f"trainer.sync_batchnorm=true needs CUDA, but this process runs on {ranks.device.type}: "
                "set it to false, or freeze_strategy.norm_stats=frozen"
            )
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return net.to(ranks.device)


def _wrap(net: nn.Module, ranks: Ranks) -> nn.Module:
    """DistributedDataParallel under torchrun; made anew in each phase, since it looks at what learns only when it is made."""
    if ranks.world == 1:
        return net
    return DistributedDataParallel(net, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)
