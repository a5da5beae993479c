"""What `fourfold --help` prints: read from the configuration folders, with nothing heavy imported."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fourfold import groups

COMMANDS = {
    "fourfold OVERRIDES": "run one experiment",
    "fourfold -m OVERRIDES": "run every combination of values listed with commas, search intervals; again: what is left",
    "fourfold plan OVERRIDES": "print what `fourfold -m OVERRIDES` would run, what is done, and how long it takes",
    "fourfold info OVERRIDES": "print the blocks of a model and what would learn",
    "fourfold place OVERRIDES": "measure how similar and how large the training data are, and print what that suggests",
    "fourfold place FOLDER": "measure where the data sets of a study lie, for the map of its report",
    "fourfold verify reproduce/NAME": "hold finished runs against a published table (--run: make them; --offline: a stand-in)",
    "fourfold report FOLDER [--format F]": "write report.html for a study (or md, json, csv, latex, pdf) and print where it is",
    "fourfold report FOLDER FOLDER": "compare two studies",
    "fourfold status FOLDER": "print what became of every run of a study, and how to repeat each",
}
FLAGS = {
    "--config-dir DIR": "a folder with your own options, beside the built-in ones",
    "--cfg job": "print the configuration instead of running it (add --resolve for final values)",
    "--info": "print where each value comes from",
    "-sc install=bash": 'tab completion: eval "$(fourfold -sc install=bash)"',
    "--version, --help, --hydra-help": "",
}
VALUES = {
    "optimizer.lr": "peak learning rate of the head",
    "trainer.epochs": "epochs",
    "trainer.batch_size": "images per optimizer step",
    "trainer.device": "auto, cpu, cuda or mps",
    "trainer.precision": "fp32, bf16, fp16, or auto: the faster of fp32 and bf16 on this device",
    "trainer.patience": "validations without gain before the run stops",
    "dataset.shots": "images per class (or dataset.train_size, or dataset.fraction)",
    "dataset.root": "where the images lie, or are downloaded to",
    "model.name": "with model=timm or model=torchvision: any of their names",
    "model.weights": "default, a tag, a file, experiment:NAME or null",
    "freeze.blocks": "with freeze=last_blocks: a count or a fraction",
    "seed": "initialisation of the head, order and augmentation of the images, split",
    "study": "folder below paths.outputs that the runs of a study share",
    "paths.outputs": "where runs are written",
    "logger.wandb.mode": "auto, online, offline or disabled",
}
EXAMPLES = (
    "fourfold",
    "fourfold debug=smoke logger=none",
    "fourfold model=vgg16 freeze=classifier_only dataset=flowers102",
    "fourfold model=timm model.name=vit_tiny_patch16_224 freeze=lp_ft dataset=dtd",
    "fourfold dataset=image_folder dataset.root=my_photos freeze=last_blocks freeze.blocks=2",
    "fourfold -m freeze=classifier_only,full,from_scratch seed=0,1,2 study=my_study",
    "fourfold -m freeze=classifier_only,full search=lr sweep.workers=2 study=tuned",
    "fourfold -m experiment=quadrants_embedded",
    "fourfold info model=resnet18 freeze=last_blocks",
    "fourfold report outputs/my_study",
)


def usage(dirs: Sequence[Path] = ()) -> str:
    """The help text, with the user's own options from `dirs` among the built-in ones."""
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    parts = [
        "Fourfold: which transfer strategy wins for your data?",
        _table("Usage", COMMANDS, width),
        _table("Flags", FLAGS, width),
        "OVERRIDES are GROUP=OPTION (below) and KEY=VALUE, such as optimizer.lr=3e-4. `freeze` is short for `freeze_strategy`.",
    ]
    for group, options in groups.options((groups.conf_dir(), *dirs)).items():
        title = f"{group} (or {groups.FREEZE[0]})" if group == groups.FREEZE[1] else group
        parts.append(_table(title, {name: groups.meaning(file) for name, file in options.items()}, width))
    parts.append(_table("Most used values", VALUES, width))
    parts.append("\n".join(("Examples", *(f"  {example}" for example in EXAMPLES))))
    return "\n\n".join(parts)


def _table(title: str, rows: dict[str, str], width: int) -> str:
    column = max(map(len, rows)) + 4
    lines = (
        textwrap.wrap(
            f"{f'  {name}':{column}}{text}", max(width, column + 40), subsequent_indent=" " * column, break_on_hyphens=False
        )
        for name, text in rows.items()
    )
    return "\n".join((title, *("\n".join(wrapped) for wrapped in lines)))
