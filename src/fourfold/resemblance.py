"""How alike two data sets look to one network, by their class means: the similarity of Cui et al. 2018 (arXiv 1806.06193)."""

import hashlib
import json
from pathlib import Path

from fourfold.compose import compose
from fourfold.config import RunConfig
from fourfold.files import lock, read_json, write_json
from fourfold.measuring import class_means
from fourfold.records import asdict
from fourfold.transferability import domain_similarity, prototype_emd

FILE = "similarities.json"


def known(source: RunConfig, target: RunConfig, folder: Path) -> float | None:
    """What `remembered` has measured, if it has."""
    file = folder / FILE
    return read_json(file).get(_key(source, target)) if file.exists() else None


def remembered(source: RunConfig, target: RunConfig, folder: Path) -> float:
    """exp(-.01 x earth mover's distance) between the class means of two data sets' training images; measured once.

    Args:
        source: A run on the one data set; its model sees both.
        target: A run on the other, with the same model.
        folder: Of the study that remembers it.
    """
    with lock(folder / f".{FILE}.lock"):
        found = read_json(folder / FILE) if (folder / FILE).exists() else {}
        key = _key(source, target)
        if key not in found:
            head_only = compose(["freeze=classifier_only"]).freeze_strategy
            found[key] = domain_similarity(prototype_emd(*(class_means(each, head_only) for each in (source, target))))
            write_json(folder / FILE, found)
        return float(found[key])


def _key(source: RunConfig, target: RunConfig) -> str:
    told = [asdict(source.dataset), asdict(target.dataset), asdict(target.model), target.seed, target.place.images_per_class]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
