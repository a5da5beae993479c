"""What cannot run is refused here, before torch, data or device are touched: one sentence for each mistake."""

import re

from fourfold.config import (
    ADAPTATIONS,
    ADAPTERS,
    AUGMENTATIONS,
    CACHE_DTYPES,
    CACHES,
    CLASS_WEIGHTS,
    COLLATES,
    DATASET_SOURCES,
    DEVICES,
    KEPT_IMAGES,
    LOSSES,
    MODEL_SOURCES,
    NORM_STATS,
    PRECISIONS,
    PREFLIGHTS,
    REGULARIZERS,
    RELATIONSHIPS,
    SAMPLERS,
    SCHEDULES,
    SEARCH_PRUNERS,
    SEARCH_SAMPLERS,
    TASKS,
    TRAINABLE,
    WANDB_MODES,
    ConfigError,
    RunConfig,
    nearest,
)


def validate(config: RunConfig) -> None:
    """Refuse what cannot run, before torch, data or device are touched.

    Raises:
        ConfigError: one sentence with the key, the value, what is allowed, and the cure.
    """
    for check in (
        _check_names,
        _check_numbers,
        _check_dataset,
        _check_model,
        _check_freeze,
        _check_regularizer,
        _check_adapt,
        _check_trainer,
        _check_loss,
        _check_exact,
        _check_search,
    ):
        check(config)


def _check_exact(config: RunConfig) -> None:
    """The exact linear probe trains a head on stored features, and nothing else."""
    if config.optimizer.name != "lbfgs":
        return
    strategy, trainer = config.freeze_strategy, config.trainer
    phases = strategy.unfreeze_every is not None or strategy.probe_epochs is not None
    if strategy.trainable != "head" or strategy.adapter.kind != "none" or phases:
        raise ConfigError(
            f"optimizer=lbfgs solves for the head alone, but freeze_strategy.name={strategy.name} trains more: "
            "choose freeze=classifier_only, or optimizer=adamw"
        )
    augmented = config.transform.augmentation != "none" or config.transform.mixup or config.transform.cutmix
    for key, value, wrong, cure in (
        ("dataset.task", config.dataset.task, config.dataset.task != "classification", "classification"),
        ("trainer.loss.name", trainer.loss.name, trainer.loss.name not in ("auto", "cross_entropy"), "auto"),
        ("transform.name", config.transform.name, augmented, "none"),
        ("cache.activations", config.cache.activations, config.cache.activations == "off", "auto"),
        ("trainer.ema_decay", trainer.ema_decay, trainer.ema_decay is not None, "null"),
        ("regularizer.name", config.regularizer.name, config.regularizer.name != "none", "none"),
        ("dataset.loader.sampler", config.dataset.loader.sampler, config.dataset.loader.sampler == "weighted", "random"),
    ):
        if wrong:
            raise ConfigError(
                f"optimizer=lbfgs solves a logistic regression on stored features, which {key}={value} does not allow: "
                f"set it to {cure}, or choose optimizer=adamw"
            )


def seconds(duration: str) -> float:
    """How long `8h`, `30m`, `90s` or `1h30m` is.

    Raises:
        ConfigError: it is no duration.
    """
    parts = re.fullmatch(r"\s*(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m)?\s*(?:(\d+(?:\.\d+)?)s)?\s*", duration)
    total = sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0.0
    if total <= 0:
        raise ConfigError(f"search.timeout={duration} is no time that a search could take: write it as 8h, 30m, 90s or 1h30m")
    return total


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}{nearest(value, allowed)}")


def _check_names(config: RunConfig) -> None:
    trainer, loader = config.trainer, config.dataset.loader
    for key, value, allowed in (
        ("dataset.source", config.dataset.source, DATASET_SOURCES),
        ("dataset.task", config.dataset.task, TASKS),
        ("dataset.loader.sampler", loader.sampler, SAMPLERS),
        ("dataset.loader.collate", loader.collate, COLLATES),
        ("model.source", config.model.source, MODEL_SOURCES),
        ("freeze_strategy.trainable", config.freeze_strategy.trainable, TRAINABLE),
        ("freeze_strategy.norm_stats", config.freeze_strategy.norm_stats, NORM_STATS),
        ("adapt.name", config.adapt.name, ADAPTATIONS),
        ("regularizer.name", config.regularizer.name, REGULARIZERS),
        ("regularizer.relationship", config.regularizer.relationship, RELATIONSHIPS),
        ("freeze_strategy.adapter.kind", config.freeze_strategy.adapter.kind, ADAPTERS),
        ("scheduler.name", config.scheduler.name, SCHEDULES),
        ("transform.augmentation", config.transform.augmentation, AUGMENTATIONS),
        ("trainer.precision", trainer.precision, PRECISIONS),
        ("trainer.device", trainer.device, DEVICES),
        ("cache.activations", config.cache.activations, CACHES),
        ("cache.dtype", config.cache.dtype, CACHE_DTYPES),
        ("trainer.loss.name", trainer.loss.name, LOSSES),
        ("trainer.loss.class_weights", trainer.loss.class_weights, CLASS_WEIGHTS),
        ("cache.images", config.cache.images, KEPT_IMAGES),
        ("logger.wandb.mode", config.logger.wandb.mode, WANDB_MODES),
        ("search.sampler", config.search.sampler, SEARCH_SAMPLERS),
        ("search.pruner", config.search.pruner, SEARCH_PRUNERS),
        ("search.preflight", config.search.preflight, PREFLIGHTS),
    ):
        _one_of(key, value, allowed)


def _check_numbers(config: RunConfig) -> None:
    data, trainer, freeze, schedule = config.dataset, config.trainer, config.freeze_strategy, config.scheduler
    lowest = {
        "trainer.epochs": (trainer.epochs, 1),
        "trainer.batch_size": (trainer.batch_size, 1),
        "trainer.eval_batch_size": (trainer.eval_batch_size, 1),
        "trainer.accumulate": (trainer.accumulate, 1),
        "trainer.val_every": (trainer.val_every, 1),
        "trainer.patience": (trainer.patience, 1),
        "trainer.threads": (trainer.threads, 1),
        "trainer.limit_train_batches": (trainer.limit_train_batches, 1),
        "trainer.limit_eval_batches": (trainer.limit_eval_batches, 1),
        "dataset.train_size": (data.train_size, 1),
        "dataset.shots": (data.shots, 1),
        "dataset.val_size": (data.val_size, 1),
        "dataset.test_size": (data.test_size, 1),
        "dataset.folds": (data.folds, 2),
        "dataset.in_chans": (data.in_chans, 1),
        "dataset.loader.num_workers": (data.loader.num_workers, 0),
        "freeze_strategy.unfreeze_every": (freeze.unfreeze_every, 1),
        "freeze_strategy.unfreeze_blocks": (freeze.unfreeze_blocks, 1),
        "freeze_strategy.adapter.rank": (freeze.adapter.rank, 1),
        "freeze_strategy.adapter.alpha": (freeze.adapter.alpha, 1),
        "adapt.weight": (config.adapt.weight, 0),
        "regularizer.weight": (config.regularizer.weight, 0),
        "regularizer.head_weight": (config.regularizer.head_weight, 0),
        "regularizer.smallest": (config.regularizer.smallest, 1),
        "regularizer.attention_images": (config.regularizer.attention_images, 0),
        "optimizer.weight_decay": (config.optimizer.weight_decay, 0),
        "scheduler.warmup_epochs": (schedule.warmup_epochs, 0),
        "scheduler.patience": (schedule.patience, 0),
        "trainer.checkpoint_seconds": (trainer.checkpoint_seconds, 0),
        "transform.mixup": (config.transform.mixup, 0),
        "transform.cutmix": (config.transform.cutmix, 0),
        "trainer.loss.gamma": (trainer.loss.gamma, 0),
        "cache.views": (config.cache.views, 1),
        "cache.limit_gb": (config.cache.limit_gb, 0),
        "search.n_trials": (config.search.n_trials, 1),
        "search.repeats": (config.search.repeats, 0),
        "search.max_retries": (config.search.max_retries, 0),
        "search.seed": (config.search.seed, 0),
    }
    for key, (value, low) in lowest.items():
        if value is not None and value < low:
            raise ConfigError(f"{key}={value} is too small: choose {low} or more")
    positive = {
        "optimizer.lr": config.optimizer.lr,
        "regularizer.temperature": config.regularizer.temperature,
        "trainer.clip_norm": trainer.clip_norm,
        "freeze_strategy.backbone_lr_mult": freeze.backbone_lr_mult,
        "freeze_strategy.finetune_lr_mult": freeze.finetune_lr_mult,
    }
    for key, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value} is not a positive number: choose one above 0")
    fractions = {
        "dataset.fraction": (data.fraction, "above 0 and at most 1", 0 < (data.fraction or 1) <= 1),
        "dataset.val_fraction": (data.val_fraction, "above 0 and below 1", 0 < data.val_fraction < 1),
        "dataset.test_fraction": (data.test_fraction, "above 0 and below 1", 0 < data.test_fraction < 1),
        "freeze_strategy.layer_decay": (freeze.layer_decay, "above 0 and at most 1", 0 < freeze.layer_decay <= 1),
        "freeze_strategy.adapter.dropout": (
            freeze.adapter.dropout,
            "from 0 up to, but not, 1",
            0 <= freeze.adapter.dropout < 1,
        ),
        "trainer.ema_decay": (trainer.ema_decay, "between 0 and 1", 0 < (trainer.ema_decay or 0.5) < 1),
        "trainer.loss.label_smoothing": (
            trainer.loss.label_smoothing,
            "from 0 up to, but not, 1",
            0 <= trainer.loss.label_smoothing < 1,
        ),
        "scheduler.min_factor": (schedule.min_factor, "from 0 to 1", 0 <= schedule.min_factor <= 1),
        "scheduler.gamma": (schedule.gamma, "above 0 and below 1", 0 < schedule.gamma < 1),
        "search.max_failure_rate": (config.search.max_failure_rate, "from 0 to 1", 0 <= config.search.max_failure_rate <= 1),
        "transform.min_scale": (config.transform.min_scale, "above 0 and at most 1", 0 < config.transform.min_scale <= 1),
    }
    for key, (value, allowed, holds) in fractions.items():
        if not holds:
            raise ConfigError(f"{key}={value} is out of range: choose a number {allowed}")


def _check_dataset(config: RunConfig) -> None:
    data = config.dataset
    sizes = {"train_size": data.train_size, "fraction": data.fraction, "shots": data.shots}
    given = [f"dataset.{key}={value}" for key, value in sizes.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} both set the number of training images: give one of them")
    if data.task != "classification" and data.shots is not None:
        raise ConfigError(f"dataset.shots={data.shots} needs classes, but dataset.task={data.task}: use dataset.train_size")
    if (data.source == "target") != (data._target_ is not None):
        raise ConfigError(
            f"dataset.source={data.source} with dataset._target_={data._target_}: "
            "a dataset of your own needs dataset.source=target and dataset._target_=package.module.function"
        )
    if (data.loader.sampler == "subset") != (data.loader.subset is not None):
        raise ConfigError(
            f"dataset.loader.sampler={data.loader.sampler} with dataset.loader.subset={data.loader.subset}: "
            "sampler=subset and a list of positions belong together"
        )
    if data.loader.persistent_workers and data.loader.num_workers == 0:
        raise ConfigError(
            "dataset.loader.persistent_workers=true needs workers: "
            "give dataset.loader.num_workers=1 or more, or set it to false"
        )


def _check_model(config: RunConfig) -> None:
    model = config.model
    if (model.source == "target") != (model._target_ is not None):
        raise ConfigError(
            f"model.source={model.source} with model._target_={model._target_}: "
            "a model of your own needs model.source=target and model._target_=package.module.function"
        )
    if model.source == "hf_hub" and model.name.count("/") != 1:
        raise ConfigError(f"model.name={model.name} is not a Hub repository: give model.name=owner/repo")
    if model.source == "torch_hub" and (model.repo is None or model.trust is None):
        raise ConfigError(
            f"model=torch_hub with model.repo={model.repo} and model.trust={model.trust}: give model.repo=owner/name, and "
            "model.trust=true if you have read that repository's code, which will run on this machine"
        )
    if model.source == "torch_hub" and not model.trust:
        raise ConfigError(
            f"model.trust={str(model.trust).lower()} forbids running the code of {model.repo}: "
            "give model.trust=true if you have read it, or choose another model"
        )


def _check_freeze(config: RunConfig) -> None:
    model, freeze = config.model, config.freeze_strategy
    if freeze.trainable == "last_blocks" and freeze.blocks is None:
        raise ConfigError("freeze_strategy.blocks=null, but last_blocks needs a count (2) or a fraction (0.25): give one")
    if freeze.blocks is not None and freeze.blocks <= 0:
        raise ConfigError(
            f"freeze_strategy.blocks={freeze.blocks} trains no block: choose 1 or more, or freeze=classifier_only"
        )
    if freeze.unfreeze_every is not None and freeze.probe_epochs is not None:
        raise ConfigError(
            f"freeze_strategy.unfreeze_every={freeze.unfreeze_every} and freeze_strategy.probe_epochs={freeze.probe_epochs} "
            "are two different orders of unfreezing: set one of them to null"
        )
    if freeze.norm_stats == "stochastic" and config.trainer.sync_batchnorm:
        raise ConfigError(
            "trainer.sync_batchnorm=true makes one kind of norm of all, freeze_strategy.norm_stats=stochastic another: give one"
        )
    if freeze.adapter.kind != "none" and freeze.trainable not in ("head", "norm", "bias"):
        raise ConfigError(
            f"freeze_strategy.adapter.kind={freeze.adapter.kind} stands beside frozen layers, but freeze_strategy.trainable="
            f"{freeze.trainable} lets them learn: choose trainable=head, norm or bias, or adapter.kind=none"
        )
    if not freeze.pretrained and freeze.trainable != "all":
        raise ConfigError(
            f"freeze_strategy.pretrained=false with freeze_strategy.trainable={freeze.trainable} would freeze random weights: "
            "use trainable=all, or pretrained=true"
        )
    if freeze.pretrained and model.weights is None and freeze.trainable != "all":
        raise ConfigError(
            f"model.weights=null with freeze={freeze.name} would freeze random weights: "
            "give model.weights=default or a file, or freeze=from_scratch"
        )


def _check_regularizer(config: RunConfig) -> None:
    name, freeze = config.regularizer.name, config.freeze_strategy
    if name == "none":
        return
    if freeze.trainable == "head" and freeze.adapter.kind == "none":
        raise ConfigError(
            f"regularizer={name} holds on to a backbone that learns, but freeze={freeze.name} trains the head alone: "
            "choose freeze=full, last_blocks or another that trains more, or regularizer=none"
        )
    if name != "bss" and (not freeze.pretrained or config.model.weights is None):
        start = f"freeze={freeze.name}" if not freeze.pretrained else "model.weights=null"
        raise ConfigError(
            f"regularizer={name} holds on to the starting weights, which are random with {start}: "
            "choose regularizer=none or bss, or start from pretrained weights"
        )
    if name != "l2_sp" and config.trainer.compile:
        raise ConfigError(
            f"trainer.compile=true with regularizer={name}: the term listens inside the network, which a compiled one does not "
            "allow, so set trainer.compile=false"
        )
    if name == "delta" and config.regularizer.attention_images and config.dataset.task != "classification":
        raise ConfigError(
            f"regularizer=delta weighs channels by what a classifier loses, not dataset.task={config.dataset.task}: "
            "add regularizer.attention_images=0, or choose feature_distillation"
        )
    if name == "co_tuning" and config.dataset.task != "classification":
        raise ConfigError(
            f"regularizer=co_tuning matches the classes of two data sets, but dataset.task={config.dataset.task}: choose "
            "another"
        )
    if name in ("l2_sp", "delta") and config.optimizer.weight_decay:
        raise ConfigError(
            f"optimizer.weight_decay={config.optimizer.weight_decay:g} pulls towards 0 what regularizer={name} holds at "
            "its start: add optimizer.weight_decay=0, and give regularizer.head_weight for the head"
        )


def _check_adapt(config: RunConfig) -> None:
    adapt, data, freeze = config.adapt, config.dataset, config.freeze_strategy
    if adapt.name == "none":
        return
    if adapt.images is None and data.train_size is None and data.fraction is None and data.shots is None:
        raise ConfigError(
            f"adapt={adapt.name} needs images without labels, but all training images are used with theirs: give a folder as "
            "adapt.images, or fewer of them by dataset.shots, train_size or fraction"
        )
    if data.loader.collate == "pad":
        raise ConfigError(f"dataset.loader.collate=pad with adapt={adapt.name} is not possible: choose stack or resize")
    if adapt.name != "adabn" and freeze.trainable == "head" and freeze.adapter.kind == "none":
        raise ConfigError(
            f"adapt={adapt.name} moves features, but freeze={freeze.name} trains the head alone: choose freeze=full, "
            "last_blocks or another that trains more, or adapt=adabn"
        )
    if adapt.name != "adabn" and config.trainer.compile:
        raise ConfigError(
            f"trainer.compile=true with adapt={adapt.name}: the term listens inside the network, which a compiled one does not "
            "allow, so set trainer.compile=false"
        )


def _check_trainer(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.batch_size % trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate={trainer.accumulate} does not divide trainer.batch_size={trainer.batch_size}: "
            "choose a divisor, since batch_size counts the images of one optimizer step"
        )
    if isinstance(trainer.channels_last, str) and trainer.channels_last != "auto":
        raise ConfigError(f"trainer.channels_last={trainer.channels_last} is not one of true, false, auto")
    if trainer.precision == "fp16" and trainer.device == "cpu":
        raise ConfigError("trainer.precision=fp16 needs a GPU, but trainer.device=cpu: choose bf16 or fp32")


def _check_loss(config: RunConfig) -> None:
    data, trainer = config.dataset, config.trainer
    loss_of = {"classification": ("cross_entropy", "focal"), "multilabel": ("bce", "focal"), "regression": ("mse",)}
    if trainer.loss.name != "auto" and trainer.loss.name not in loss_of[data.task]:
        raise ConfigError(
            f"trainer.loss.name={trainer.loss.name} does not fit dataset.task={data.task}: "
            f"choose auto or {' or '.join(loss_of[data.task])}"
        )
    if data.task != "classification":
        for key, value, off in (
            ("trainer.loss.label_smoothing", trainer.loss.label_smoothing, 0),
            ("trainer.loss.class_weights", trainer.loss.class_weights, "none"),
            ("transform.mixup", config.transform.mixup, 0),
            ("transform.cutmix", config.transform.cutmix, 0),
        ):
            if value != off:
                raise ConfigError(f"{key}={value} needs dataset.task=classification, not {data.task}: set it to {off}")
        if data.loader.sampler == "weighted":
            raise ConfigError(f"dataset.loader.sampler=weighted balances classes, but dataset.task={data.task}: use random")
    if trainer.loss.name == "focal" and (config.transform.mixup or config.transform.cutmix or trainer.loss.label_smoothing):
        raise ConfigError(
            "trainer.loss.name=focal takes hard labels only: set transform.mixup, transform.cutmix and "
            "trainer.loss.label_smoothing to 0, or choose cross_entropy"
        )


def _check_search(config: RunConfig) -> None:
    search = config.search
    if search.keep is not None and (search.keep < 1 or search.warm_start != "transferability"):
        raise ConfigError(
            f"search.keep={search.keep} keeps the first models and strategies in an order that search.warm_start="
            "transferability measures: give both, and a whole number of 1 or more"
        )
    if search.timeout is not None:
        seconds(search.timeout)
    if len(search.objectives) > 1 and search.pruner != "none":
        raise ConfigError(
            f"search.pruner={search.pruner} cannot judge {len(search.objectives)} objectives at once: add search.pruner=none"
        )
    if len(search.objectives) > 1 and search.sampler == "cmaes":
        raise ConfigError(
            f"search.sampler=cmaes follows one objective, not {len(search.objectives)}: choose nsgaii, tpe, gp, qmc or random"
        )
