"""`fourfold place`: how similar and how large a target is, what that suggests, and which of several networks serves it best."""

import functools
import itertools
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fourfold.advice import EVIDENCE, STUDY
from fourfold.compose import ROOT, compose, composed, explained, hydra_ready, settled, start_of, to_run_config
from fourfold.config import ConfigError, FreezeConfig, RunConfig
from fourfold.measuring import measure, refuse, remembered
from fourfold.placement import Placement, Size, recalled
from fourfold.prospects import varying
from fourfold.records import asdict
from fourfold.task import finish_start

STRATEGIES = ("classifier_only", "last_blocks", "full")  # whose learning parameters are counted
LIMITS = (
    "The lift from which a target is similar ({similar:g}) was set on fourteen toy targets at 32 x 32 pixels with one small "
    "network, and tested on no photograph; that below which it is different ({different:g}) and {small} and {large} images per "
    "class are conventions. A low lift says that "
    "frozen features do not help, not that pretraining does not: "
    "nothing here speaks for training from scratch. It orders what to try; "
    "`fourfold -m freeze=classifier_only,last_blocks,full` decides."
)


def placed(config: RunConfig, dirs: Sequence[Path] = (), file: Path | None = None) -> Placement:
    """Measure a target as a run of `config` would see it, after making the start that it names.

    Args:
        config: As `compose` gives it; what its strategy trains does not matter.
        dirs: Folders with the user's own options.
        file: Where a study remembers what was measured; see `measuring.remembered`.

    Raises:
        ConfigError: see `measuring.measure`.
    """
    config = _bare(config)
    strategies = {name: _strategy(name) for name in STRATEGIES}
    refuse(config)
    start = start_of(config, dirs)
    if start is not None:
        finish_start(start, config, dirs)
    config = settled(config, dirs)
    return measure(config, strategies) if file is None else remembered(config, strategies, file)


def already(config: RunConfig, dirs: Sequence[Path], file: Path) -> Placement | None:
    """What `placed` has written into `file`; measures nothing."""
    return recalled(settled(_bare(config), dirs), file)


def _bare(config: RunConfig) -> RunConfig:
    """With a strategy that starts from the pretrained weights, whatever the run would do."""
    return replace(config, freeze_strategy=_strategy("classifier_only"))


@functools.cache  # a seventh of a second each, and a study has many places
def _strategy(name: str) -> FreezeConfig:
    return compose([f"freeze={name}"]).freeze_strategy


def show(words: Sequence[str], dirs: Sequence[Path] = (), config_name: str = ROOT) -> None:
    """Measure, and print what was found: a page, or for several networks or targets a table.

    Args:
        words: Overrides in canonical spelling; commas make alternatives, as in a sweep.
        dirs: Folders with the user's own options.
        config_name: The primary config.

    Raises:
        ConfigError: one sentence; see also `measuring.measure`.
    """
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    wanted = _alternatives(words, dirs, config_name)
    for _, config in wanted:
        refuse(config)
    if len(wanted) > 1:
        print(ranked([(label, config, placed(config, dirs)) for label, config in wanted]))
        return
    ((_, config),) = wanted
    placement = placed(config, dirs)
    print(f"{config.dataset.name} seen by {config.model.name} with the weights {settled(config, dirs).model.weights}\n")
    column = 2 + max(len(label) for label, _ in told(placement))
    for label, text in told(placement):
        lines = textwrap.wrap(text, max(40, width - column), break_long_words=False, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), " " * column).replace(" " * column, f"{label:{column}}", 1))


def _alternatives(words: Sequence[str], dirs: Sequence[Path], config_name: str) -> list[tuple[str, RunConfig]]:
    """(what sets it apart, the run) of every combination of the values between commas."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fourfold.study.space import read
    from fourfold.study.trials import spoken

    with explained(words, dirs):
        with hydra_ready(dirs) as hydra:
            parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides([*words])
        cells = read(parsed, n_trials=1)
        if any(cell.space for cell in cells):
            raise ConfigError("`fourfold place` measures listed values, not intervals: give the values with commas")
        swept = varying(cells)
        labels = [" ".join(spoken(each) for each in cell.fixed if each.partition("=")[0] in swept) for cell in cells]
        configs = (to_run_config(composed(cell.fixed, dirs, config_name)) for cell in cells)
        return [*zip(labels, configs, strict=True)]


def ranked(found: Sequence[tuple[str, RunConfig, Placement]]) -> str:
    """A table: networks by LogME, best first, for one target after the other, since raw scores of two targets do not compare.

    Args:
        found: (what sets it apart, its configuration, where it stands).
    """
    rows: list[tuple[str, ...]] = [("", "", "LogME", "probe", "lift", "", "quadrant", "suggested", "seconds")]
    for _, group in itertools.groupby(sorted(found, key=_target), key=_target):
        best_first = sorted(group, key=lambda each: each[2].logme, reverse=True)
        rows += [_row(place, label, each) for place, (label, _, each) in enumerate(best_first, 1)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = (
        "Networks of one target, best first by LogME (nats per image and class; You et al. 2021): how well frozen features "
        "tell the classes. Probe: cross-validated accuracy of a linear one. Lift: with its 95 % bootstrap interval; where "
        "intervals overlap, the order may be chance."
    )
    return "\n".join([*lines, "", textwrap.fill(note, min(shutil.get_terminal_size((120, 24)).columns, 140))])


def _target(each: tuple[str, RunConfig, Placement]) -> str:
    return repr(each[1].dataset)


def _row(place: int, label: str, found: Placement) -> tuple[str, ...]:
    lift = found.lift
    quadrant = f"{found.similarity or 'unknown'}, {' and '.join(found.sizes)}"
    suggested = [EVIDENCE[found.similarity, size].suggested for size in found.sizes] if found.similarity else ["-"]
    return (
        f"{place}.",
        label,
        f"{found.logme:.3f}",
        "-" if lift.pretrained is None else f"{lift.pretrained:.1%}",
        "-" if lift.value is None else f"{lift.value:.2f}",
        "undefined" if lift.value is None else f"({lift.low:.2f} to {lift.high:.2f})",
        quadrant,
        " or ".join(dict.fromkeys(suggested)),
        f"{found.seconds:.1f}",
    )


def told(placement: Placement) -> list[tuple[str, str]]:
    """Rows of (label, text)."""
    return [
        ("similarity", _similarity(placement)),
        ("", _beside(placement)),
        ("size", _images(placement.size)),
        ("", _relative(placement.size)),
        ("quadrant", _quadrant(placement)),
        *[row for name in placement.sizes for row in _advice(placement, name)],
        ("limits", LIMITS.format(**asdict(placement.levels))),
    ]


def _similarity(placement: Placement) -> str:
    found, whole = placement.lift, placement.size.images
    seen = (
        f"{placement.seen:,} training images"
        if placement.seen == whole
        else f"the first {placement.seen:,} of {whole:,} training images"
    )
    if found.value is None:
        return f"lift undefined on {seen}: {found.undefined}."
    return (
        f"lift {found.value:.2f} (95 % bootstrap interval {found.low:.2f} to {found.high:.2f}): the share of random features' "
        f"error that the pretrained ones remove. A linear probe on the pretrained ones is right in {found.pretrained:.1%}, on "
        f"random ones in {found.random:.1%} ({placement.levels.initialisations} initialisations), cross-validated on {seen}."
    )


def _beside(placement: Placement) -> str:
    shift = "no batch norm" if placement.shift is None else f"batch-norm shift {placement.shift:.3f} nats per channel"
    return f"LogME gain {placement.logme_gain:.3f} nats per image and class; {shift}."


def _images(size: Size) -> str:
    spread = "" if size.fewest == size.most else f" on average ({size.fewest:,} to {size.most:,})"
    return f"{size.images:,} training images of {size.classes} classes, {size.per_class:,.4g} per class{spread}."


def _relative(size: Size) -> str:
    each = (f"{name} {size.images / count:.3g} ({count:,})" for name, count in size.learns.items())
    return f"Images per parameter that would learn: {', '.join(each)}."


def _quadrant(placement: Placement) -> str:
    size, levels = " and ".join(placement.sizes), placement.levels
    between = f"between {size} ({levels.small} to {levels.large} images per class), so both are told"
    how_large = size if len(placement.sizes) == 1 else between
    if placement.similarity is None:
        return f"{how_large}; how similar is not known."
    shares = ", ".join(f"{name} {share:.0%}" for name, share in placement.shares.items() if share > 0)
    return f"{placement.similarity}, {how_large}. Share of the lift's bootstrap draws: {shares}."


def _advice(placement: Placement, size: str) -> list[tuple[str, str]]:
    title = f" if {size}" if len(placement.sizes) > 1 else ""
    if placement.similarity is None:
        return [(f"suggested{title}", "no strategy: without a lift there is no quadrant to look up.")]
    textbook = compose([f"quadrant={placement.similarity}_{size}"]).quadrant.textbook
    evidence = EVIDENCE[placement.similarity, size]
    figures = ", ".join(f"{name} {value}" for name, value in evidence.accuracy.items())
    return [
        (f"textbook{title}", f"{textbook}." if textbook else "none: it calls transfer unsuitable here and names no strategy."),
        (f"measured{title}", f"{figures} (percent, three seeds, the toy target of this quadrant; {STUDY})."),
        (f"suggested{title}", f"{evidence.suggested}: {evidence.why}."),
    ]
