"""What one run is: its typed configuration. What cannot run together is refused in `checks`.

Types live here and nowhere else; values live in ``conf/*.yaml`` and nowhere else. The same dataclasses are the schema that
Hydra composes against (every misspelt key or wrong type is refused while composing) and the plain objects that the rest of
the package receives.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

TASKS = ("classification", "multilabel", "regression")
MODEL_SOURCES = ("torchvision", "timm", "hf_hub", "torch_hub", "micro_resnet", "target")
DATASET_SOURCES = ("torchvision", "fake", "image_folder", "csv", "huggingface", "generated", "target")
TRAINABLE = ("head", "last_blocks", "all", "norm", "bias", "all_but_embedding")
NORM_STATS = ("follow", "frozen", "stochastic")
ADAPTERS = ("none", "lora", "dora", "loha", "lokr", "ia3")
SCHEDULES = ("constant", "cosine", "step", "plateau")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
DEVICES = ("auto", "cpu", "cuda", "mps")
LOSSES = ("auto", "cross_entropy", "focal", "bce", "mse")
CLASS_WEIGHTS = ("none", "balanced")
SAMPLERS = ("random", "sequential", "weighted", "subset")
COLLATES = ("stack", "pad", "resize")
AUGMENTATIONS = ("none", "light", "standard", "randaugment", "trivialaugment")
CACHES = ("auto", "off")
CACHE_DTYPES = ("fp32", "bf16", "fp16")
KEPT_IMAGES = ("auto", "off", "ram", "disk")
ADAPTATIONS = ("none", "adabn", "coral", "mmd", "dann")
REGULARIZERS = ("none", "l2_sp", "bss", "feature_distillation", "delta", "co_tuning")
RELATIONSHIPS = ("reverse", "direct")
WANDB_MODES = ("auto", "online", "offline", "disabled")
SIZES = ("small", "large")
SEARCH_SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random", "nsgaii", "grid", "brute_force")
PREFLIGHTS = ("tell", "stop", "off")
SEARCH_PRUNERS = ("median", "asha", "hyperband", "wilcoxon", "patient", "none")


class ConfigError(ValueError):
    """A configuration that cannot run, told in one sentence: the key, the value, what is allowed, the cure."""


# `Optional[...]` and `Union[...]` are spelt out because OmegaConf 2.3 does not read `X | Y` in structured configs.


@dataclass
class LoaderConfig:
    """How images reach the loop. Nothing here changes which images are seen, except `sampler` and `drop_last`."""

    sampler: str  # one of SAMPLERS
    subset: Optional[list[int]]  # positions in the training manifest, for sampler=subset
    collate: str  # one of COLLATES
    drop_last: bool
    num_workers: int
    pin_memory: bool
    persistent_workers: bool


@dataclass
class DatasetConfig:
    """Which images, which of them, and how they are split."""

    name: str
    source: str  # one of DATASET_SOURCES
    _target_: Optional[str]  # dotted path of the user's own builder, for source=target
    kwargs: dict[str, Any]  # handed to the source
    root: str  # where downloads and folders live
    download: bool
    task: str  # one of TASKS
    in_chans: int  # channels that reach the model (grey images are repeated)
    train_size: Optional[int]  # images in all, stratified
    fraction: Optional[float]  # share of the training images, stratified
    shots: Optional[int]  # images per class, exactly
    val_fraction: float  # cut from train where the dataset brings no val split
    val_size: Optional[int]  # as val_fraction, in images; wins over it
    test_fraction: float  # cut where the dataset brings no test split
    test_size: Optional[int]  # cap on the test images; null keeps all
    folds: Optional[int]  # cross-validation: split seed i tests the i-th of so many parts; null cuts test_fraction anew
    split_seed: Optional[int]  # of the split; null follows `seed`
    loader: LoaderConfig


@dataclass
class ModelConfig:
    """Which architecture, starting from which weights."""

    name: str
    source: str  # one of MODEL_SOURCES
    _target_: Optional[str]  # dotted path of the user's own builder, for source=target
    kwargs: dict[str, Any]  # handed to the builder
    weights: Optional[str]  # default | a tag of the source | a file | experiment:NAME | null
    partial_weights: bool  # accept a checkpoint that does not fill the whole backbone
    repo: Optional[str]  # torch_hub: owner/name, or a local folder
    trust: Optional[bool]  # torch_hub: the user's explicit consent to run the repository's code
    image_size: Optional[int]  # overrides the size of the weights' own preprocessing
    mean: Optional[list[float]]
    std: Optional[list[float]]
    interpolation: Optional[str]
    crop_pct: Optional[float]


@dataclass
class AdapterConfig:
    """New weights beside frozen layers, through the peft library. See docs/transfer_methods.md."""

    kind: str  # one of ADAPTERS
    rank: int  # of each update; ia3 has none
    alpha: int  # an update counts alpha / rank times
    dropout: float  # of what enters the adapters of lora and dora


@dataclass
class FreezeConfig:
    """What learns, as data. See docs/strategies.md."""

    name: str
    pretrained: bool  # false: the control, random initialisation
    trainable: str  # one of TRAINABLE; what learns in the last phase
    blocks: Optional[Union[int, float]]  # for last_blocks: a count, or a fraction of all blocks
    norm_stats: (
        str  # follow: a norm whose own parameters all learn moves its statistics; frozen: none does; stochastic: StochNorm
    )
    backbone_lr_mult: float  # learning rate of everything but the head, relative to optimizer.lr
    layer_decay: float  # each block further from the head learns at this times the rate of the one after it
    unfreeze_every: Optional[int]  # gradual: epochs between two unfreezing steps, from the head downwards
    unfreeze_blocks: int  # gradual: blocks per step
    probe_epochs: Optional[Union[int, float]]  # lp_ft: epochs (or fraction of all) that train the head alone first
    finetune_lr_mult: float  # lp_ft: multiplies every rate once the probe has ended
    adapter: AdapterConfig  # learns in the last phase, beside what `trainable` names


@dataclass
class OptimizerConfig:
    """Handed to timm's optimizer factory."""

    name: str
    lr: float  # peak learning rate of the head
    small_lr: float  # what a textbook would call small: the first trial of every search of the rate
    weight_decay: float
    momentum: float
    kwargs: dict[str, Any]


@dataclass
class RegularizerConfig:
    """A further term of the training loss, about what the network brought with it. See docs/transfer_methods.md."""

    name: str  # one of REGULARIZERS
    weight: float  # of the term
    head_weight: float  # l2_sp and delta: of half the squared norm of what starts anew, in place of weight decay
    smallest: int  # bss: how many singular values are shrunk
    attention_images: int  # delta: training images on which channels are weighed; 0 weighs them alike
    layers: Optional[
        list[str]
    ]  # feature_distillation and delta: modules whose outputs are compared; null: four blocks, evenly spread
    relationship: str  # co_tuning: one of RELATIONSHIPS, how the classes of source and target are matched
    temperature: float  # co_tuning: what the source head's logits are divided by, so that its probabilities are calibrated


@dataclass
class AdaptConfig:
    """What images without labels are used for. See docs/transfer_methods.md."""

    name: str  # one of ADAPTATIONS
    weight: float  # of the term of the loss; dann: of the reversed gradient, in the end
    images: Optional[str]  # a folder of unlabelled image files; null: the training images that the dataset's size left out


@dataclass
class SchedulerConfig:
    """A factor on every group's own learning rate, as a function of the step (plateau: of the epoch's result)."""

    name: str  # one of SCHEDULES
    warmup_epochs: float
    min_factor: float  # the factor at the end (cosine), or the lowest one (step, plateau)
    milestones: list[float]  # step: fractions of the run at which gamma is applied
    gamma: float  # step, plateau
    patience: int  # plateau: validations without gain before gamma is applied


@dataclass
class TransformConfig:
    """Augmentation of the training images. Evaluation always uses the weights' own preprocessing."""

    name: str
    augmentation: str  # one of AUGMENTATIONS
    hflip: bool
    min_scale: float  # standard and stronger: smallest share of the area that a random crop keeps
    magnitude: int  # randaugment
    mixup: float  # alpha; 0 is off
    cutmix: float  # alpha; 0 is off


@dataclass
class CacheConfig:
    """What is computed once and reused by every epoch, learning rate, seed and trial. See docs/caching.md."""

    images: str  # one of KEPT_IMAGES: decoded, and brought to their size
    activations: str  # one of CACHES: of the frozen prefix of a network
    dtype: str  # one of CACHE_DTYPES, in which activations are stored
    views: Optional[int]  # augmented views of each training image that are stored; null: augmented images are computed anew
    limit_gb: float  # of all stored activations together


@dataclass
class LossConfig:
    name: str  # one of LOSSES; auto follows dataset.task
    label_smoothing: float
    class_weights: str  # one of CLASS_WEIGHTS
    gamma: float  # focal


@dataclass
class TrainerConfig:
    """The loop."""

    epochs: int
    batch_size: int  # images per optimizer step, over all processes and accumulated micro-batches together
    eval_batch_size: int
    accumulate: int  # micro-batches per optimizer step
    val_every: int  # epochs between validations; the last epoch is always validated
    precision: str  # one of PRECISIONS
    clip_norm: Optional[float]
    ema_decay: Optional[float]
    patience: Optional[int]  # validations without gain before the run stops
    monitor: str  # auto | a metric of the validation, such as val/acc
    checkpoint_seconds: Optional[float]  # least time between two saves, at epoch ends; null: ten times what a save takes
    loss: LossConfig
    device: str  # one of DEVICES
    threads: Optional[int]  # torch threads of this process; null leaves torch's choice
    deterministic: bool
    channels_last: Union[bool, str]  # true, false, or auto: as a probe of some steps finds it faster
    compile: bool  # torch.compile; result.json tells how long it took
    sync_batchnorm: bool  # torchrun only
    limit_train_batches: Optional[int]
    limit_eval_batches: Optional[int]
    overfit: bool  # train and validate on the first batch, unaugmented
    profile: bool  # write a trace of the first steps
    progress: bool


@dataclass
class WandbConfig:
    enabled: bool
    mode: str  # one of WANDB_MODES
    project: str
    entity: Optional[str]
    tags: list[str]
    log_model: bool  # upload best.pt as an artifact
    watch: bool  # histograms of gradients: costs time every 100 steps


@dataclass
class TensorboardConfig:
    enabled: bool


@dataclass
class CsvConfig:
    enabled: bool


@dataclass
class LoggerConfig:
    """Who is told beside metrics.jsonl and result.json, which are always written."""

    name: str
    wandb: WandbConfig
    tensorboard: TensorboardConfig
    csv: CsvConfig


@dataclass
class QuadrantConfig:
    """The label of the cell of the 2 x 2 rule that this run is meant for. It changes no computation."""

    name: Optional[str]
    similarity: Optional[str]  # similar | middle | different
    size: Optional[str]  # one of SIZES
    textbook: Optional[str]  # the strategy that the textbook would choose here


@dataclass
class PlaceConfig:
    """Where the levels of similarity and size begin, and what is looked at to tell. See docs/place.md."""

    name: str
    similar: float  # lift from which a target is similar
    different: float  # lift below which it is different; between the two it is in the middle
    small: int  # images per class up to which a target is small
    large: int  # images per class from which it is large; between the two it is both
    rates: dict[str, list[float]]  # similarity -> least and most of optimizer.lr, in multiples of the optimizer's usual one
    images: int  # training images that are looked at
    images_per_class: int  # more of them where there are so many classes
    initialisations: int  # random networks that the pretrained one is compared with


@dataclass
class ReproduceConfig:
    """Published figures that the runs of an experiment are held against. They change no computation. See docs/reproduce.md."""

    source: Optional[str]  # where they are published
    tables: list[dict[str, Any]]  # name, measure, axes, values; given, over, below, above, order


@dataclass
class SearchConfig:
    """How a multirun chooses the values that it tries. See docs/search.md."""

    name: str
    n_trials: int  # per cell, where something is searched
    repeats: int  # seeds that run at each cell's best point; 0 is none
    timeout: Optional[str]  # no run begins that would not end in time: 8h, 30m, 90s or 1h30m
    sampler: str  # one of SEARCH_SAMPLERS
    pruner: str  # one of SEARCH_PRUNERS
    objectives: list[str]  # empty: the metric that the runs monitor; of several the Pareto set is searched, without a pruner
    seed: int  # of the sampler
    max_failure_rate: float  # share of failed runs above which the multirun ends with an error
    max_retries: int  # how often in a row, without another epoch done, a run whose process died is run again
    enqueue: list[dict[str, Any]]  # points that each cell tries after the textbook's
    warm_start: Optional[str]  # an older study's folder, whose best settings each cell tries then; or transferability
    keep: Optional[int]  # with warm_start=transferability: models and strategies that run on each target, the best of them
    map: bool  # whether a multirun ends with measuring where its data sets lie, for the map of its report; see docs/place.md
    preflight: str  # one of PREFLIGHTS: what cannot run, found before the first run, is told, or stops the multirun


@dataclass
class DebugConfig:
    name: Optional[str]


@dataclass
class PathsConfig:
    outputs: str
    data: str
    cache: str


@dataclass
class RunConfig:
    """One run, whole. `conf/config.yaml` gives every value its default."""

    seed: int
    study: str  # the folder below paths.outputs that a multirun shares; W&B's group
    dataset: DatasetConfig
    model: ModelConfig
    freeze_strategy: FreezeConfig
    optimizer: OptimizerConfig
    regularizer: RegularizerConfig
    adapt: AdaptConfig
    scheduler: SchedulerConfig
    transform: TransformConfig
    cache: CacheConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    quadrant: QuadrantConfig
    place: PlaceConfig
    reproduce: ReproduceConfig
    search: SearchConfig
    debug: DebugConfig
    paths: PathsConfig


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`, did you mean X?` for the nearest of `allowed`, or an empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""
