"""From runs to verdicts: which strategy each quadrant's data show to be best, which are as good, and which is cheapest.

A *place* is where strategies meet on equal terms: one quadrant (or dataset and size) and one model. In it each strategy is
a *cell*: everything but the optimizer's settings and the seed. The settings of a cell are chosen on the validation split;
the test split only reports, and only of the chosen.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.identity import NOT_IN_THE_RESULT, ROOT_IS_THE_DATA
from fourfold.placement import FILE, Kept, Placement, kept
from fourfold.study.cells import Cell, by_weight, form, number, varying
from fourfold.study.metric import Metric, metric_of
from fourfold.study.results import UNREADABLE, Quadrant, Result, Unfinished, read_runs
from fourfold.study.verdict import Verdict, judge

SEED_KEYS = ("seed", "dataset.split_seed")
SIMILARITIES = ("similar", "middle", "different")
SIZES = ("small", "large")


@dataclass(frozen=True)
class Place:
    """One row of the study's table: a quadrant (or dataset and size) with one model."""

    quadrant: Quadrant | None
    dataset: str
    train_size: str
    model: str
    variant: tuple[str, ...]  # what else of the dataset tells it from places of the same name, as "key=value"
    metric: Metric
    cells: tuple[Cell, ...]
    verdict: Verdict
    source: Result | None  # the run whose data and backbone are measured to tell where the place lies; None: not defined here
    placement: Placement | None  # where that is, once it has been measured

    def cell(self, strategy: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.strategy == strategy), None)

    @property
    def title(self) -> str:
        if self.quadrant is None:
            return f"{self.dataset} · {self.train_size}"
        if self.quadrant.similarity and self.quadrant.size:
            return f"{self.quadrant.similarity} · {self.quadrant.size}"
        return self.quadrant.name

    @property
    def misplaced(self) -> bool:
        """Whether the data were measured to lie in another quadrant than the study gave them."""
        if self.quadrant is None or self.placement is None or self.placement.similarity is None:
            return False
        similarity, size = self.quadrant.similarity, self.quadrant.size
        return similarity not in (None, self.placement.similarity) or size not in (None, *self.placement.sizes)

    @property
    def chance(self) -> float | None:
        """Accuracy of always answering the most frequent class, where accuracy is the metric."""
        known = [run.chance for cell in self.cells for run in cell.chosen.runs if run.chance is not None]
        return max(known) if known and self.metric.name == "acc" else None


@dataclass(frozen=True)
class Study:
    """Everything below one folder, arranged."""

    name: str
    folder: Path
    results: tuple[Result, ...]
    unfinished: tuple[Unfinished, ...]
    places: tuple[Place, ...]  # similar to different, small to large
    strategies: tuple[str, ...]  # every cell's label: least trained first, the untransferred control last


def read_study(folder: Path) -> Study:
    """Read and arrange all runs at or below `folder`, with what was measured of where their data lie."""
    results, unfinished = read_runs(folder)
    names = sorted({result.study for result in results})
    places = arrange(results, [each for study in sorted({run.folder.parent for run in results}) for each in _measured(study)])
    return Study(
        name=names[0] if len(names) == 1 else folder.resolve().name,
        folder=folder,
        results=tuple(results),
        unfinished=tuple(unfinished),
        places=places,
        strategies=by_weight(cell for place in places for cell in place.cells),
    )


def _measured(study: Path) -> tuple[Kept, ...]:
    try:
        return kept(study / FILE)
    except (OSError, *UNREADABLE):
        return ()


def arrange(results: Iterable[Result], measured: Sequence[Kept] = ()) -> tuple[Place, ...]:
    """Group runs into places, choose each cell's settings on validation, and compare on test.

    Args:
        results: Of a study.
        measured: Where its data lie, as far as that is known.
    """
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        label = (result.quadrant and result.quadrant.name, result.dataset, result.train_size, result.model, result.task)
        groups.setdefault(label, []).append(result)
    apart = [(variant, runs) for group in groups.values() for variant, runs in _apart(group, _is_other_data).items()]
    return tuple(sorted((_place(variant, runs, measured) for variant, runs in apart), key=_place_order))


def _place(variant: tuple[str, ...], runs: Sequence[Result], measured: Sequence[Kept]) -> Place:
    metric, first = metric_of(runs), runs[0]
    by_strategy: dict[str, list[Result]] = {}
    for run in runs:
        by_strategy.setdefault(run.strategy, []).append(run)
    cells = [
        form(" ".join([strategy, *varied]), group, metric)
        for strategy, each in by_strategy.items()
        for varied, group in _apart(each, _is_other_training).items()
    ]
    order = by_weight(cells)
    cells.sort(key=lambda cell: order.index(cell.strategy))
    textbook = first.quadrant.textbook if first.quadrant else None
    source = _source(runs)
    placement = _placement(source, runs, measured) if source else None
    return Place(
        quadrant=first.quadrant,
        dataset=first.dataset,
        train_size=first.train_size,
        model=first.model,
        variant=variant,
        metric=metric,
        cells=tuple(cells),
        verdict=judge(cells, metric, textbook, placement.suggested if placement else None),
        source=source,
        placement=placement,
    )


def _source(runs: Sequence[Result]) -> Result | None:
    """Of the runs with the backbone that most of them start from, the one with the smallest seed."""
    able = [run for run in runs if run.pretrained and run.task == "classification" and run.config["model"].get("weights")]
    backbones = Counter(json.dumps(run.config["model"], sort_keys=True) for run in able)
    if not backbones:
        return None
    commonest = min(backbones, key=lambda text: (-backbones[text], text))
    same = [run for run in able if json.dumps(run.config["model"], sort_keys=True) == commonest]
    return min(same, key=lambda run: (run.seed, run.run_id))


def _placement(source: Result, runs: Sequence[Result], measured: Sequence[Kept]) -> Placement | None:
    """Measured with any seed: `quadrant=auto` takes that of the study, before there are runs."""
    model, data = source.config["model"], [run.config["dataset"] for run in runs]
    return next((each.placement for each in measured if each.model == model and each.dataset in data), None)


def _is_other_data(key: str, source: str) -> bool:
    """Whether runs that differ in this key saw different data, so that their scores do not compare."""
    if key == "dataset.root":
        return source in ROOT_IS_THE_DATA
    return key.startswith("dataset.") and not key.startswith("dataset.loader.") and _matters(key)


def _is_other_training(key: str, source: str) -> bool:
    """Whether runs that differ in this key are strategies to tell apart; optimizer settings are chosen among instead."""
    return not key.startswith(("optimizer.", "dataset.root")) and _matters(key)


def _matters(key: str) -> bool:
    left_out = (*NOT_IN_THE_RESULT, *SEED_KEYS)
    return not any(key == each or key.startswith(f"{each}.") for each in left_out)


def _apart(runs: Sequence[Result], tells: Callable[[str, str], bool]) -> dict[tuple[str, ...], list[Result]]:
    """Runs by whatever differs among them in the config keys that `tells` them apart; () where nothing does."""
    leaves = [run.settings for run in runs]
    source = str(leaves[0].get("dataset.source"))
    varied = [key for key in varying(leaves) if tells(key, source)]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for run, values in zip(runs, leaves, strict=True):
        variant = tuple(f"{key.removeprefix('freeze_strategy.')}={number(values.get(key))}" for key in varied)
        groups.setdefault(variant, []).append(run)
    return groups


def _place_order(place: Place) -> tuple[Any, ...]:
    quadrant = place.quadrant
    similarity = quadrant.similarity if quadrant else None
    size = quadrant.size if quadrant else None
    return (
        SIMILARITIES.index(similarity) if similarity in SIMILARITIES else len(SIMILARITIES),
        SIZES.index(size) if size in SIZES else len(SIZES),
        quadrant.name if quadrant else "",
        place.dataset,
        [int(part) if part.isdigit() else 0 for part in place.train_size.split()[:1]],
        place.train_size,
        place.model,
        place.variant,
    )
