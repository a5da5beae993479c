"""Which weights a network starts from, and what of a checkpoint file reached it."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fourfold.config import ConfigError, ModelConfig

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
WRAPPERS = ("ema", "state_dict_ema", "model_ema", "model", "state_dict")  # the first that is there and not null
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


@dataclass(frozen=True)
class WeightsReport:
    """Where the weights came from, and the tensors of a checkpoint file that did not fit."""

    source: str  # a tag, a path, or "random"
    missing: tuple[str, ...] = ()  # tensors of the backbone that the file does not have
    unexpected: tuple[str, ...] = ()  # tensors of the file that the model does not have
    mismatched: tuple[str, ...] = ()  # tensors of the backbone whose shape is another one in the file
    dropped: tuple[str, ...] = ()  # tensors of the file's head: the head is always new


def start(config: ModelConfig, pretrained: bool) -> str | Path | None:
    """What `model.weights` asks for: a tag of the source ("default" is its choice), a file, or None for random weights.

    Raises:
        ConfigError: the file does not exist.
    """
    given = config.weights
    if not pretrained or given is None:
        return None
    if given.startswith("experiment:"):
        raise ConfigError(
            f"model.weights={given} names an experiment, not a file: run it first and give the path of its best.pt"
        )
    file = Path(given).expanduser()
    if file.is_file():
        return file
    if file.suffix in SUFFIXES or "/" in given:
        raise ConfigError(f"model.weights={given} does not exist: give the path of a checkpoint file, or model.weights=default")
    return given


def load(net: nn.Module, file: Path, heads: tuple[str, ...], partial: bool) -> WeightsReport:
    """Copy a checkpoint file into the backbone of `net`, in place. The heads keep their new weights.

    Args:
        file: a Fourfold checkpoint (its averaged weights where it has them), a state dict, or one wrapped in a dict; opened
            without running any code in it.
        partial: accept a file that does not fill the whole backbone.

    Raises:
        ConfigError: the file cannot be read, nothing in it fits, or it does not fill the backbone and `partial` is false.
    """
    found = read(file)
    if any(".base_layer." in name for name in found):
        raise ConfigError(
            f"model.weights={file} holds adapters beside its weights: give merged.pt of the same folder, or another file"
        )
    mine = net.state_dict()
    dropped = tuple(name for name in found if _in_heads(name, heads))
    unexpected = tuple(name for name in found if name not in mine and name not in dropped)
    backbone = [name for name in mine if not _in_heads(name, heads)]
    # Old checkpoints lack this counter, which no forward pass reads.
    missing = tuple(name for name in backbone if name not in found and not name.endswith("num_batches_tracked"))
    mismatched = tuple(name for name in backbone if name in found and found[name].shape != mine[name].shape)
    fitting = {name: found[name] for name in backbone if name in found and name not in mismatched}
    if not any(name in fitting for name, _ in net.named_parameters()):
        raise ConfigError(
            f"model.weights={file} fits nothing in the backbone (it holds {_few(found)}, "
            f"the model wants {_few(backbone)}): choose the model.name that it was saved from"
        )
    if (missing or mismatched) and not partial:
        raise ConfigError(
            f"model.weights={file} does not fill the backbone: {len(missing)} tensors are missing ({_few(missing)}) and "
            f"{len(mismatched)} have another shape ({_few(mismatched)}); choose the model.name that it was saved from, "
            "or accept random weights there with model.partial_weights=true"
        )
    net.load_state_dict(fitting, strict=False)
    return WeightsReport(str(file), missing, unexpected, mismatched, dropped)


def head(file: Path, name: str) -> nn.Linear | nn.Conv2d | None:
    """The layer called `name` that a checkpoint file has, a Linear or a convolution of 1 x 1; None where it has no such layer.

    Draws nothing.

    Raises:
        ConfigError: the file cannot be read.
    """
    found = read(file)
    weight, bias = found.get(f"{name}.weight"), found.get(f"{name}.bias")
    if weight is None or weight.ndim not in (2, 4) or (weight.ndim == 4 and weight.shape[2:] != (1, 1)):
        return None
    outputs, inputs = weight.shape[:2]
    layer: nn.Linear | nn.Conv2d
    if weight.ndim == 2:
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias is not None)
    else:
        layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 1, bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def read(file: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, on the CPU, without wrappers and prefixes.

    Args:
        file: If it names another file as `frozen`, as the runs of a sweep over one head do, with what is in that.

    Raises:
        ConfigError: the file is damaged, holds code, or holds no tensors; or the file that it names is missing.
    """
    content = _opened(file)
    if isinstance(content, Mapping):
        inside = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        tensors = {_plain(name): value for name, value in inside.items() if isinstance(value, Tensor)}
        if isinstance(content.get("frozen"), str):
            frozen = Path(os.path.normpath(file.parent / content["frozen"]))
            if not frozen.exists():
                raise ConfigError(
                    f"model.weights={file} holds only what its run has learned, and {frozen} with the rest is missing: "
                    "bring it back to where the study was, or give another file"
                )
            tensors = {**read(frozen), **tensors}
        if tensors:
            return tensors
    raise ConfigError(f"model.weights={file} holds no tensors: give a state dict or a checkpoint of a run")


def _opened(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))  # else of before PyTorch 1.6
    except Exception as error:  # the unpickler of a damaged file may stumble in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model.weights={file} cannot be read as tensors alone ({reason}): "
            "save it again as torch.save(model.state_dict(), path) or with safetensors"
        ) from error


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _in_heads(name: str, heads: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{head}." for head in heads))


def _few(names: Any) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > 3 else "") if first else "none"
