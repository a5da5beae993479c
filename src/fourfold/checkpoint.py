"""The whole state of a run on disk, so that a run that was ended at any moment goes on as if it had not been."""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fourfold.files import replacing
from fourfold.records import asdict
from fourfold.seeding import in_tensors, of_tensors, rng_state, set_rng_state
from fourfold.state import Proof, State
from fourfold.zoo import ModelEmaV3

WORTH = 10  # times what saving takes: a run saves what took longer to train
CHEAPEST = 0.005  # seconds that saving takes at least, synced to disk: believed until a run has saved once


class Interval:
    """When a run saves, at the ends of its epochs: once the time asked for has passed, or once it has trained for `WORTH` times
    as long as a save takes. So saving takes a tenth of a run at most, and a kill costs as little.

    Args:
        least: Seconds between two saves, by the clock; None: by what they cost.
        seconds: For which the run has trained by now; of runs that are trained together, its share.
    """

    def __init__(self, least: float | None, seconds: float) -> None:
        self._least, self._cost = least, CHEAPEST
        self._clock, self._seconds = time.perf_counter(), seconds

    def over(self, seconds: float) -> bool:
        """Whether it is time, `seconds` of training after the run began."""
        if self._least is not None:
            return time.perf_counter() - self._clock >= self._least
        return seconds - self._seconds >= WORTH * self._cost

    @contextmanager
    def saving(self, seconds: float) -> Iterator[None]:
        """A save takes place, which begins the next interval."""
        began = time.perf_counter()
        yield
        self._clock, self._seconds = time.perf_counter(), seconds
        self._cost = self._clock - began


def content_of(
    state: State,
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    ema: ModelEmaV3 | None,
    frozen: Collection[str] = (),
    part: str = "",
    apart: str | None = None,
) -> dict[str, Any]:
    """A checkpoint, of the tensors as they are: the next step changes them.

    Args:
        frozen: Entries of the state dict that have never moved, and are left out: a new start of the run has them anyway.
        part: A module in which all others are.
        apart: Where they will be, as for `complete`.
    """
    return {
        "frozen": apart,
        "model": _but(net, frozen, part),
        "ema": None if ema is None else _but(ema.module, frozen, part),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rng": in_tensors(rng_state()),
        "state": asdict(state),
    }


def copy_of(content: Any) -> Any:
    """A checkpoint as it is now, in this process's own memory."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copy_of(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(copy_of(part) for part in content)
    return content


def save(folder: Path, content: dict[str, Any], best: dict[str, Any] | None) -> None:
    """Write `last.pt`, and `best.pt` if there is a better one than on disk; each appears whole or not at all.

    `best.pt` comes first: a kill between the two leaves an older `last.pt`, from which the same best epoch is made again.

    Args:
        content: Of the present.
        best: Of the best epoch, which may be the same; None where `best.pt` stays as it is.
    """
    if best is not None:
        _write(best, folder / "best.pt")
    if best is not content:
        _write(content, folder / "last.pt")
        return
    with replacing(folder / "last.pt") as path:
        _link(folder / "best.pt", path)


def _but(net: nn.Module, left_out: Collection[str], part: str) -> dict[str, torch.Tensor]:
    state = net.get_submodule(part).state_dict(prefix=f"{part}." if part else "")
    return {name: value for name, value in state.items() if name not in left_out}


def complete(path: Path, content: dict[str, Any], net: nn.Module, apart: str | None = None) -> None:
    """Add to a checkpoint what it has left out, so that other runs can begin from it; a whole one stays as it is.

    Args:
        path: The checkpoint.
        content: What `load` gave of it.
        net: Holds what was left out.
        apart: A file, from the checkpoint's folder, that many checkpoints share for what they leave out, and name as `frozen`;
            made if it is not there. By default it is copied into each.
    """
    there = None if apart is None else Path(os.path.normpath(path.parent / apart))
    if there is not None and content.get("frozen") == apart and there.exists():
        return
    whole = net.state_dict()
    left_out = {name: value for name, value in whole.items() if name not in content["model"]}
    if not left_out:
        return
    if there is None:
        filled = {key: {**whole, **content[key]} for key in ("model", "ema") if content[key] is not None}
        _write({**content, **filled, "frozen": None}, path)
        return
    if not there.exists():
        _write({"model": left_out}, there)
    if content.get("frozen") != apart:  # of a run that began alone
        _write({**content, "frozen": apart}, path)


def _write(content: dict[str, Any], path: Path) -> None:
    checked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=False)  # two thirds of the time, for sums that torch.load never reads
    try:
        with replacing(path) as file:
            torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(compute_crc32=checked)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name where the file system can, else a copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What `save` wrote, or None if nothing was."""
    if not path.exists():
        return None
    return torch.load(path, map_location=device, weights_only=True)


def state_of(content: dict[str, Any]) -> State:
    """The `State` of a loaded checkpoint."""
    values = dict(content["state"])
    values["proofs"] = [Proof(**{**proof, "epochs": tuple(proof["epochs"])}) for proof in values["proofs"]]
    return State(**values)


def restore(
    content: dict[str, Any],
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    ema: ModelEmaV3 | None,
    frozen: Collection[str] = (),
) -> None:
    """Put a loaded checkpoint into freshly built parts, and the random numbers where they were.

    Args:
        frozen: As in `save`; what else is missing is an error.
    """
    put(content["model"], net, frozen)
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    if ema is not None:
        put(content["ema"], ema.module, frozen)
    set_rng_state(of_tensors({name: _on_cpu(value) for name, value in content["rng"].items()}))


def put(weights: dict[str, torch.Tensor], net: nn.Module, frozen: Collection[str], part: str = "") -> None:
    """Load weights that may leave out what is frozen.

    Args:
        frozen: As for `content_of`.
        part: Likewise. Nothing outside is looked at, unless the weights have it.
    """
    if not all(name.startswith(f"{part}.") for name in weights):
        part = ""
    missing = _but(net, frozen, part).keys() - weights.keys()
    if missing:
        raise KeyError(f"the checkpoint has no {', '.join(sorted(missing)[:3])}")
    start = f"{part}." if part else ""
    inside = {name.removeprefix(start): value for name, value in weights.items()}
    net.get_submodule(part).load_state_dict(inside, strict=not set(frozen) - weights.keys())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(part) for part in value)
    return value


def weights_of(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that were validated: the averaged ones where there are any."""
    return content["model"] if content["ema"] is None else content["ema"]
