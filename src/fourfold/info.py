"""`fourfold info`: what a model is made of, and what of it would learn, before anything is downloaded or trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fourfold import data, freeze, models
from fourfold.config import ConfigError, RunConfig

PIPED_WIDTH = 120  # columns where there is no terminal to ask


def show(config: RunConfig) -> None:
    """Print the blocks of the configured model, what learns under the strategy, and how images have to look.

    Nothing is downloaded: weights that are not a local file are left random, since no figure here depends on them.

    Raises:
        ConfigError: the model or the strategy cannot be had.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    outputs, outputs_from = _outputs(config)
    file = bool(config.model.weights) and Path(str(config.model.weights)).expanduser().is_file()
    model = models.create(config.model, outputs, in_chans=config.dataset.in_chans, pretrained=file)
    model = models.adapt(model, config.freeze_strategy)
    plan = freeze.plan(model, config.freeze_strategy, epochs=config.trainer.epochs)
    rows = models.describe(model)

    console.print(_table(f"{config.model.name}, freeze={config.freeze_strategy.name}", rows, plan))
    for line in (_totals(model, plan), f"outputs: {outputs} {outputs_from}", _images(model), *_weights(config, model)):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _outputs(config: RunConfig) -> tuple[int, str]:
    try:
        outline = data.outline(replace(config.dataset, download=False), config.seed)
    except ConfigError as error:
        return 2, f"(assumed, since the dataset is not here yet: {error})"
    return outline.num_outputs, f"({config.dataset.name}, {config.dataset.task})"


def _table(title: str, rows: Sequence[models.Row], plan: freeze.Plan) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("block")
    table.add_column("output of one image")
    table.add_column("parameters", justify="right")
    table.add_column("learns")
    for row in rows:
        shape = "x".join(map(str, row.output)) if row.output else "-"
        table.add_row(escape(row.name), shape, f"{row.parameters:,}", _learns(row, plan))
    return table


def _learns(row: models.Row, plan: freeze.Plan) -> str:
    """Which share of a block learns once the last phase has begun, and since when."""
    by_phase = [frozenset(row.params) & phase.trainable for phase in plan.phases]
    if not by_phase[-1]:
        return "-"
    share = "all" if len(by_phase[-1]) == len(row.params) else f"{len(by_phase[-1])} of {len(row.params)} tensors"
    start = plan.phases[by_phase.index(by_phase[-1])].start
    return share if start == 0 else f"{share}, from epoch {start}"


def _totals(model: models.TransferModel, plan: freeze.Plan) -> str:
    sizes = {name: param.numel() for name, param in model.net.named_parameters()}
    total = sum(sizes.values())
    learning = [(phase.start, sum(sizes[name] for name in phase.trainable)) for phase in plan.phases]
    parts = [f"{count:,} ({count / total:.1%}) learn" + f" from epoch {start}" * (start > 0) for start, count in learning]
    return f"parameters: {total:,}; {', '.join(parts)}"


def _images(model: models.TransferModel) -> str:
    seen = model.preprocessing
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (seen.mean, seen.std))
    return (
        f"images: {len(seen.mean)} x {seen.size} x {seen.size}, short side resized to {seen.resize} ({seen.interpolation}) "
        f"and cropped, mean {mean}, std {std}"
    )


def _weights(config: RunConfig, model: models.TransferModel) -> list[str]:
    report = model.weights
    if report.source == "random":
        wanted = config.model.weights if config.freeze_strategy.pretrained else None
        return [f"weights: a run would start from {_named(wanted)}; nothing was downloaded for this page"]
    lines = [f"weights: {report.source}"]
    for kind in ("missing", "unexpected", "mismatched", "dropped"):
        names = getattr(report, kind)
        if names:
            lines.append(f"  {kind}: {len(names)} tensors, such as {', '.join(names[:3])}")
    return lines


def _named(weights: str | None) -> str:
    return {None: "random weights", "default": "the source's default weights"}.get(weights, str(weights))
