"""A paragraph of methods with the study's own numbers, and the BibTeX entries of what it used."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.report.wording import duration, listed, several
from fourfold.study.quadrants import Study
from fourfold.study.results import Result
from fourfold.study.statistics import LEVEL

BIBLIOGRAPHY = Path(__file__).parent / "references.bib"
GRID = 8  # learning rates: of more, only the ends are told

ALWAYS = ("paszke2019pytorch", "yadan2019hydra", "student1908probable", "efron1979bootstrap", "holm1979simple")
# What a run's configuration may name, and what is cited for it; models by the beginning of their name.
CITED = {
    "strategy": {"lp_ft": "kumar2022finetuning", "gradual": "howard2018universal", "stochnorm": "kou2020stochastic"},
    "regularizer": {
        "l2_sp": "li2018explicit",
        "bss": "chen2019catastrophic",
        "feature_distillation": "romero2015fitnets",
        "delta": "li2019delta",
        "co_tuning": "you2020cotuning",
    },
    "adapt": {"adabn": "li2016revisiting", "coral": "sun2016deep", "mmd": "long2015learning", "dann": "ganin2016domain"},
    "optimizer": {"adamw": "loshchilov2019decoupled"},
    "scheduler": {"cosine": "loshchilov2017sgdr"},
    "model": {
        "resnet": "he2016deep",
        "vgg": "simonyan2015very",
        "densenet": "huang2017densely",
        "mobilenet_v3": "howard2019searching",
        "efficientnet": "tan2019efficientnet",
        "vit": "dosovitskiy2021image",
        "swin": "liu2021swin",
        "convnext": "liu2022convnet",
    },
}

NAMED = ("regularizer", "adapt", "optimizer", "scheduler")  # groups whose options are cited by their name


def paragraph(study: Study) -> str:
    """The methods of the study in plain sentences, to be pasted into a paper; empty before a run has finished."""
    if not study.places:
        return ""
    return " ".join([*_what(study), *_how(study), *_statistics(study), *_on_what(study)])


def bibtex(study: Study) -> str:
    """Entries of the libraries, models, strategies and statistics that this study used, in the order of the file."""
    cited = keys(study)
    text = BIBLIOGRAPHY.read_text(encoding="utf-8")
    entries = re.finditer(r"^@\w+\{(\w+),.*?^\}$", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(entry[0] for entry in entries if entry[1] in cited)


def keys(study: Study) -> set[str]:
    """Which entries those are."""
    found = set(ALWAYS) if study.results else set()
    for run in study.results:
        config = run.config
        found.add(CITED["strategy"].get(str(_of(config, "freeze_strategy", "name")), ""))
        found |= {CITED[group].get(str(_of(config, group, "name")), "") for group in NAMED}
        found |= {key for start, key in CITED["model"].items() if run.model.startswith(start)}
        found |= {"wightman2019timm"} if _of(config, "model", "source") == "timm" else set()
        found |= {"akiba2019optuna"} if _searched(study) else set()
        found |= {"kornblith2019similarity"} if run.drift else set()
    if any(place.verdict.rivals for place in study.places):
        found.add("bouthillier2021accounting")
    if len(study.places) >= 3:  # as `ranking` asks
        found.add("demsar2006statistical")
    return found - {""}


def _what(study: Study) -> list[str]:
    models = listed(sorted({place.model for place in study.places}))
    data = listed(dict.fromkeys(f"{place.dataset} ({place.train_size})" for place in study.places))
    number = len(study.strategies)
    compared = f"We compared {number} transfer strategies" if number > 1 else "We trained one transfer strategy"
    return [f"{compared} ({listed(study.strategies)}) of {models} on {data}."]


def _how(study: Study) -> list[str]:
    runs = study.results
    said = []
    optimizers = _values(runs, "optimizer", "name")
    rates = sorted({float(run.optimizer["lr"]) for run in runs})
    decay = _values(runs, "optimizer", "weight_decay")
    schedule = _values(runs, "scheduler", "name")
    batch, epochs = _values(runs, "trainer", "batch_size"), sorted({run.epochs for run in runs})
    tuned = f"the learning rate was chosen from {{{', '.join(f'{rate:g}' for rate in rates)}}}"
    if len(rates) > GRID:
        tuned = f"the learning rate was searched between {rates[0]:.2g} and {rates[-1]:.2g} ({len(rates)} values)"
    elif len(rates) == 1:
        tuned = f"the learning rate was {rates[0]:g}, the same for all"
    trained = f"Every strategy was trained with {listed(optimizers)}"
    if decay:
        trained += f" (weight decay {listed(decay)})"
    if schedule:
        trained += f" on a {listed(schedule)} schedule"
    if batch:
        trained += f", batch size {listed(batch)}, for {_span(epochs)} epochs"
    said.append(f"{trained}; {tuned}.")
    splits = _images(study)
    seeds = sorted({cell.chosen.test.n for place in study.places for cell in place.cells})
    repeated = f"Each cell was repeated with {_span(seeds)} {'seed' if seeds == [1] else 'seeds'}, which"
    said += [
        f"Settings and epochs were chosen by the {_metric(study)} on validation images alone{splits}; the test images were "
        "used once per run, after the last choice.",
        f"{repeated} {_drawn(runs)}the new head and the order, and are shared by all strategies.",
    ]
    return said


def _drawn(runs: Sequence[Result]) -> str:
    """What a seed decides, as far as images go."""
    if len(_values(runs, "dataset", "split_seed")) == 1:
        return "draw "
    folds = _values(runs, "dataset", "folds")
    cut = {split for run in runs for split in run.cut if not (folds and split == "test")}
    parts = listed(["training", *(word for split, word in (("val", "validation"), ("test", "test")) if split in cut)])
    tested = f"test another of {listed(folds)} stratified folds each, and " if folds else ""
    return f"{tested}draw the {parts} images, "


def _statistics(study: Study) -> list[str]:
    if not any(place.verdict.rivals for place in study.places):
        return []
    most = max(len(place.verdict.rivals) for place in study.places)
    said = (
        "We report means and standard deviations over seeds with 95 % Student's t intervals. Strategies were compared with the "
        "one best on validation by paired t-tests over seeds on the same images, "
        f"corrected for up to {several(most, 'comparison')} per quadrant after Holm at level {LEVEL:g}"
    )
    margin = any(place.metric.percent for place in study.places)
    tie = "; intervals that include zero, and differences under one point, count as ties" if margin else ""
    return [f"{said}{tie}."]


def _on_what(study: Study) -> list[str]:
    devices = listed(sorted({"a CPU" if run.device == "cpu" else run.device for run in study.results if run.device}))
    libraries = (("PyTorch", "torch"), ("Fourfold", "fourfold"))
    versions = [(word, sorted({run.versions[key] for run in study.results if key in run.versions})) for word, key in libraries]
    told = listed(f"{word} {listed(found)}" for word, found in versions if found)
    total = duration(math.fsum(run.seconds for run in study.results))
    ran = f"All {len(study.results)} runs took {total} of training" + (f" on {devices}" if devices else "")
    return [f"{ran}{f', with {told}' if told else ''}."]


def _images(study: Study) -> str:
    """` (250 of them; 547 to 600 test images)`, as far as the runs said."""
    val = sorted({run.images["val"] for run in study.results if "val" in run.images})
    test = sorted({run.images["test"] for run in study.results if "test" in run.images})
    return f" ({_span(val)} of them; {_span(test)} test images)" if val and test else ""


def _metric(study: Study) -> str:
    return listed(dict.fromkeys(f"mean {place.metric.label}" for place in study.places))


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _searched(study: Study) -> bool:
    return any(len({setting.lr for setting in cell.settings}) > GRID for place in study.places for cell in place.cells)


def _of(config: Mapping[str, Any], group: str, key: str) -> Any:
    section = config.get(group)
    return section.get(key) if isinstance(section, Mapping) else None


def _values(runs: Sequence[Result], group: str, key: str) -> list[str]:
    """Distinct values in the order in which they first occur, as text; without those that no run has."""
    found = dict.fromkeys(_of(run.config, group, key) for run in runs)
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in found if value is not None]
