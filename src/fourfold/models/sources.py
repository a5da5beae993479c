"""The places that models come from. Each builder gives a network, its preprocessing, and what it knows about its head."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from fourfold.config import ConfigError, ModelConfig, nearest
from fourfold.models import preprocessing
from fourfold.models.micro_resnet import MicroResNet
from fourfold.models.preprocessing import Preprocessing
from fourfold.target import resolve
from fourfold.zoo import resolve_model_data_config, timm

# What networks without metadata of their own are taken to expect.
IMAGENET = Preprocessing(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MICRO = Preprocessing(32, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
DRAWING = (  # functions of torch.nn.init
    "kaiming_normal_", "kaiming_uniform_", "normal_", "orthogonal_", "sparse_", "trunc_normal_", "uniform_", "xavier_normal_",
    "xavier_uniform_",
)  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A network as its source made it, before its head is proven."""

    net: nn.Module
    preprocessing: Preprocessing
    origin: str  # which weights it has
    heads: tuple[str, ...] = ()  # already new and of the right width; empty when the head has to be looked for
    sized: bool = False  # the source was told the number of outputs, so the head has only to be found
    channelled: bool = False  # the source was told how many channels the images have
    source_head: nn.Module | None = None  # what stood in the head's place, where the source has taken it out already


def build(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool = False) -> Built:
    """Build the network that `config` names.

    Args:
        tag: the source's pretrained weights to start from ("default" is its choice); None for random weights.
        filled: the caller fills all of it but its new head with weights, so none have to be drawn where that can be helped.

    Raises:
        ConfigError: an unknown name or tag, or weights that cannot be fetched.
    """
    builders: dict[str, Callable[..., Built]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "hf_hub": _hf_hub,
        "torch_hub": _torch_hub,
        "micro_resnet": _micro_resnet,
        "target": _target,
    }
    return builders[config.source](config, tag, num_outputs, in_chans, filled)


def _torchvision(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    name = config.name
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        elsewhere = " (model=timm has it)" if timm.is_model(name) else ""
        raise ConfigError(f"model.name={name} is not a classification model of torchvision{elsewhere}{nearest(name, known)}")
    weights = _torchvision_weights(name, tag)
    meta = preprocessing.from_torchvision((weights or _torchvision_weights(name, "default")).transforms())
    kwargs: dict[str, Any] = {}
    if name.startswith("vit_") and weights is None:
        kwargs = {"image_size": config.image_size or meta.size}
    if name in WITH_AUXILIARY_HEADS:
        # Their weights were trained on inputs in [-1, 1]. Random weights do not mind, and a checkpoint of a run on those
        # weights has to find the same network again.
        kwargs = {"transform_input": in_chans == 3} | ({} if weights else {"init_weights": True})
    with _fetching(f"model.weights={tag} of {name}", "PyTorch's server"), _undrawn(filled or weights is not None):
        net = _called(torchvision.models.get_model, config, name, weights=weights, **kwargs)
    if name in WITH_AUXILIARY_HEADS:
        _drop_auxiliary_heads(net)
    if name.startswith("vit_") and config.image_size not in (None, net.image_size):
        net = _vit_at(net, config)
    return Built(net, meta, f"torchvision {name}.{weights.name}" if weights else "random")


def _torchvision_weights(name: str, tag: str | None) -> Any:
    choices = torchvision.models.get_model_weights(name)
    if tag is None:
        return None
    if tag == "default":
        return choices.DEFAULT
    if tag not in choices.__members__:
        allowed = [*choices.__members__, "default", "null"]
        raise ConfigError(
            f"model.weights={tag} is not one of {', '.join(allowed)}, or the path of a file{nearest(tag, allowed)}"
        )
    return choices[tag]


def _vit_at(native: Any, config: ModelConfig) -> nn.Module:
    """The same vision transformer for images of `config.image_size`: its position embedding is interpolated."""
    size = config.image_size
    net = _called(torchvision.models.get_model, config, config.name, weights=None, image_size=size)
    net.load_state_dict(interpolate_embeddings(size, native.patch_size, native.state_dict()))
    return net


def _drop_auxiliary_heads(net: nn.Module) -> None:
    net.aux_logits = False  # type: ignore[assignment]
    for name, _ in list(net.named_children()):
        if name.lower().startswith("aux"):
            setattr(net, name, None)


def _timm(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    name, _, own_tag = config.name.partition(".")
    if not timm.is_model(name):
        elsewhere = " (model=torchvision has it)" if name in torchvision.models.list_models(module=torchvision.models) else ""
        raise ConfigError(f"model.name={config.name} is not a model of timm{elsewhere}{nearest(name, timm.list_models())}")
    chosen = own_tag if tag in (None, "default") else str(tag)
    if own_tag and chosen != own_tag:
        raise ConfigError(f"model.name={config.name} and model.weights={tag} name two sets of weights: give one of them")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag is not None and not tags:
        raise ConfigError(f"timm has no weights for model.name={name}: set model.weights to null or to the path of a file")
    if chosen and chosen not in tags:
        allowed = [*tags, "default", "null"]
        raise ConfigError(
            f"model.weights={chosen} is not one of {name}'s {', '.join(allowed)}, or the path of a file{nearest(chosen, tags)}"
        )
    return _timm_built(f"{name}.{chosen}" if chosen else name, config, tag is not None, num_outputs, in_chans, filled)


def _hf_hub(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    if tag not in (None, "default"):
        raise ConfigError(
            f"model.weights={tag}, but {config.name} on the Hugging Face Hub has one set of weights: "
            "choose default, null, or the path of a file"
        )
    return _timm_built(f"hf-hub:{config.name}", config, tag is not None, num_outputs, in_chans, filled)


def _timm_built(name: str, config: ModelConfig, pretrained: bool, num_outputs: int, in_chans: int, filled: bool) -> Built:
    asks = pretrained or name.startswith("hf-hub:")
    with _fetching(f"the model {name}", constants.ENDPOINT), _hub_or_cache(asks), _undrawn(filled):
        net = _called(timm.create_model, config, name, pretrained=pretrained, in_chans=in_chans)
    if config.image_size is not None and hasattr(net, "set_input_size"):  # transformers, whose embedding depends on it
        net.set_input_size(img_size=(config.image_size, config.image_size))
    before = net.get_classifier()
    net.reset_classifier(num_outputs)
    classifiers = net.get_classifier()  # several in distilled models
    wanted = classifiers if isinstance(classifiers, (tuple, list)) else (classifiers,)
    heads = tuple(module_name for module_name, module in net.named_modules() if any(module is head for head in wanted))
    meta = preprocessing.from_timm(resolve_model_data_config(net))
    origin = f"timm {_full_name(net, name)}" if pretrained else "random"
    return Built(net, meta, origin, heads, channelled=True, source_head=before if isinstance(before, nn.Module) else None)


def _full_name(net: nn.Module, name: str) -> str:
    tag: Any = getattr(net, "pretrained_cfg", {}).get("tag")
    return f"{name}.{tag}" if tag and "." not in name and ":" not in name else name


def _torch_hub(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    repo = str(config.repo)
    local = Path(repo).expanduser().is_dir()
    # Hub entries take `pretrained` by convention; a named set of weights is torchvision's newer convention.
    asked = {"weights": tag} if tag not in (None, "default") else {"pretrained": tag is not None}
    where = {"source": "local"} if local else {"source": "github", "trust_repo": config.trust}
    with _fetching(f"{config.name} of {repo}", "PyTorch Hub"):
        net = _called(torch.hub.load, config, str(Path(repo).expanduser()) if local else repo, config.name, **where, **asked)
    return Built(net, IMAGENET, f"torch_hub {repo} {config.name} ({tag})" if tag else "random")


def _micro_resnet(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    if tag is not None:
        raise ConfigError(
            f"model.weights={tag}, but micro_resnet brings no weights: "
            "choose experiment:pretrain_embedded, null, or the path of a file"
        )
    return Built(_called(MicroResNet, config, num_outputs, in_chans), MICRO, "random", heads=("head",))


def _target(config: ModelConfig, tag: str | None, num_outputs: int, in_chans: int, filled: bool) -> Built:
    """The user's builder, told what it has a parameter for: `num_classes` or `num_outputs`, `in_chans`, and `pretrained`."""
    builder: Any = resolve(str(config._target_))
    offered = {"num_classes": num_outputs, "num_outputs": num_outputs, "in_chans": in_chans, "pretrained": tag is not None}
    accepted = inspect.signature(builder).parameters
    known = {key: value for key, value in offered.items() if key in accepted and key not in config.kwargs}
    if tag is None and config.weights == "default" and "pretrained" not in accepted:
        raise ConfigError(
            f"model._target_={config._target_} has no parameter `pretrained`, so it cannot be asked for random weights: "
            "add one, or set model.weights=null if its weights are random anyway"
        )
    net = _called(builder, config, **known)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model._target_={config._target_} gave a {type(net).__name__}: it has to return a torch.nn.Module")
    meta = preprocessing.from_timm(resolve_model_data_config(net)) if hasattr(net, "pretrained_cfg") else IMAGENET
    sized = bool({"num_classes", "num_outputs"} & known.keys())
    return Built(net, meta, f"{config._target_}" if tag else "random", sized=sized)


def _called(builder: Callable[..., Any], config: ModelConfig, *args: Any, **kwargs: Any) -> Any:
    """`builder(*args, **kwargs)` with the user's own arguments, which win."""
    try:
        return builder(*args, **{**kwargs, **config.kwargs})
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{config.name} cannot be built with model.kwargs={config.kwargs} and model.image_size={config.image_size} "
            f"({error}): correct them, or leave them at their defaults"
        ) from error


@contextmanager
def _undrawn(skip: bool) -> Iterator[None]:
    """Draw no initial weights: a network that is filled afterwards does not need them, and they take most of building it."""
    drawing = {name: getattr(nn.init, name) for name in DRAWING if skip}
    for name in drawing:
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for name, function in drawing.items():
            setattr(nn.init, name, function)


@contextmanager
def _fetching(what: str, where: str) -> Iterator[None]:
    """Turn a failed download into one sentence that says what to do."""
    try:
        yield
    except OSError as error:  # URLError, timeouts, and what huggingface_hub raises are all of this kind
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ConfigError(
            f"{what} cannot be fetched from {where} ({reason}): check the name and the network, or give a local file as "
            "model.weights=PATH, or start from random weights with freeze=from_scratch"
        ) from error


@contextmanager
def _hub_or_cache(needed: bool) -> Iterator[None]:
    """Ask the Hugging Face Hub once whether it is there; if not, work from its cache.

    Its client alone would retry every file, and fail after most of a minute (huggingface_hub 2.4).
    """
    offline = constants.HF_HUB_OFFLINE
    if needed and not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=10)
        except Exception:  # of the HTTP library, which differs between versions of huggingface_hub
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
