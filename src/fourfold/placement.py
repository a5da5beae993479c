"""Where a target stands before anything learns from it: how similar it is to what a network knows, and how large.

The record alone, as `measuring.py` makes it; to read what a study has measured takes no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.advice import EVIDENCE
from fourfold.config import PlaceConfig, RunConfig
from fourfold.files import read_json, write_json
from fourfold.records import asdict
from fourfold.transferability import Lift

FILE = "placements.json"  # in the folder of a study


@dataclass(frozen=True)
class Size:
    """How much there is to learn from, and how much would learn."""

    images: int  # training images
    fewest: int  # of a class
    most: int
    classes: int
    learns: dict[str, int]  # strategy -> parameters that ever learn

    @property
    def per_class(self) -> float:
        return self.images / self.classes

    def names(self, levels: PlaceConfig) -> tuple[str, ...]:
        """small, large, or, between the two thresholds, both."""
        return (
            *(["small"] if self.per_class < levels.large else []),
            *(["large"] if self.per_class > levels.small else []),
        )

    def nearest(self, levels: PlaceConfig) -> str:
        """small or large; between the two thresholds, the one that is fewer times away."""
        return "small" if self.per_class**2 < levels.small * levels.large else "large"


@dataclass(frozen=True)
class Placement:
    """Where a target stands.

    Attributes:
        lift: see `transferability.lift`; undefined where it says why.
        logme: of the pretrained features, nats per image and class: what networks are ranked by on one target.
        logme_gain: what is left of it when that of random features is taken away.
        shift: of the batch-norm statistics, nats per channel; None where the network has none.
        seen: training images that were looked at.
        size: of the whole training split.
        shares: similar, middle and different -> share of the lift's bootstrap draws; empty where the lift is undefined.
        levels: where similar, different, small and large begin.
        seconds: that measuring took.
    """

    lift: Lift
    logme: float
    logme_gain: float
    shift: float | None
    seen: int
    size: Size
    shares: dict[str, float]
    levels: PlaceConfig
    seconds: float

    @property
    def similarity(self) -> str | None:
        return None if self.lift.value is None else similarity(self.lift.value, self.levels)

    @property
    def sizes(self) -> tuple[str, ...]:
        """small, large, or both; see `Size.names`."""
        return self.size.names(self.levels)

    @property
    def suggested(self) -> str | None:
        """The strategy that the embedded study speaks for in this quadrant; between small and large, in the nearer one."""
        return None if self.similarity is None else EVIDENCE[self.similarity, self.size.nearest(self.levels)].suggested


def similarity(value: float, levels: PlaceConfig) -> str:
    """similar, middle or different, by the lift."""
    return "similar" if value >= levels.similar else "middle" if value >= levels.different else "different"


@dataclass(frozen=True)
class Kept:
    """A placement, and what it is of: the `dataset` and `model` sections of a run's configuration, and its seed."""

    placement: Placement
    dataset: Mapping[str, Any]
    model: Mapping[str, Any]
    seed: int


def keep(found: Placement, config: RunConfig, file: Path) -> None:
    """Add what was measured of a target and a network to those that a study knows. The caller holds the file's lock."""
    plain = asdict(found)
    plain["lift"].pop("draws")
    of = {"dataset": asdict(config.dataset), "model": asdict(config.model), "seed": config.seed}
    write_json(file, _contents(file) | {_key(config): plain | {"of": of}})


def recalled(config: RunConfig, file: Path) -> Placement | None:
    """What was kept of a target and a network, with this seed's images; None where nothing was."""
    found = _contents(file).get(_key(config))
    return None if found is None else _placement(found)


def kept(file: Path) -> tuple[Kept, ...]:
    """All that a study has measured, in the order of seeds."""
    entries = [Kept(_placement(each), **each["of"]) for each in _contents(file).values() if "of" in each]
    return tuple(sorted(entries, key=lambda entry: entry.seed))


def _contents(file: Path) -> dict[str, Any]:
    return dict(read_json(file)) if file.exists() else {}


def _placement(found: Mapping[str, Any]) -> Placement:
    parts = {"lift": Lift(**found["lift"]), "size": Size(**found["size"]), "levels": PlaceConfig(**found["levels"])}
    return Placement(**{**{name: value for name, value in found.items() if name != "of"}, **parts})


def _key(config: RunConfig) -> str:
    """Hash of all that a measurement depends on."""
    told = [asdict(config.dataset), asdict(config.model), config.seed, asdict(config.place)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
