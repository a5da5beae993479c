"""What `fourfold verify --offline` runs in place of a published study: two batches of generated images, random weights."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.task import execute
from fourfold.verify import TRAINED, Table, configured, overrides_of, said, tables_of

GENERATED = (  # in place of what would be downloaded, and of hours
    "debug=smoke", "logger=none", "dataset.source=fake", "dataset.train_size=null", "dataset.fraction=null",
    "dataset.shots=null", "++dataset.kwargs={size:24,test_size:8,num_classes:4,image_size:32,channels:3}",
    "dataset.val_size=8", "dataset.test_size=8", "dataset.loader.num_workers=0", "dataset.loader.persistent_workers=false",
    "cache.images=off", "trainer.batch_size=4", "trainer.eval_batch_size=4", "trainer.precision=fp32", "trainer.device=cpu",
    "trainer.progress=false", "place.images=24", "place.images_per_class=5",
)  # fmt: skip


def tried(experiment: str, overrides: Sequence[str] = (), dirs: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """Two batches of generated images through the configuration of each table, with random weights: it shows that the
    study can run, not what it finds.

    Returns:
        (the table, what came of it).
    """
    config = configured([f"experiment={experiment}", *overrides], dirs)
    told = []
    for table in tables_of(config, experiment):
        keys, _ = next(table.cells())
        wanted = {**table.given, **keys}
        if table.over:
            wanted[table.over[0]] = table.over[1][0]
        with tempfile.TemporaryDirectory() as outputs:
            words = [f"experiment={experiment}", *overrides, *overrides_of(wanted)]
            told.append((f"{table.name}: {said(keys)}", _try(table, wanted, words, dirs, Path(outputs))))
    return told


def _try(table: Table, wanted: Mapping[str, Any], words: Sequence[str], dirs: Sequence[Path], outputs: Path) -> str:
    import torch

    from fourfold import models
    from fourfold.resemblance import remembered

    words = [*words, *_generated(words, dirs), f"paths.outputs={outputs}"]
    other = [word for word in words if not word.startswith("freeze_strategy=")]
    config = configured([*other, "model.weights=null", "freeze_strategy=from_scratch"], dirs)
    net = models.create(config.model, 2, in_chans=3, pretrained=False).net
    torch.save(net.state_dict(), outputs / "random.pt")
    config = configured([*words, f"model.weights={outputs / 'random.pt'}"], dirs)
    if table.measure == "similarity":
        return f"similarity {remembered(config, config, outputs):.3f} of a data set to itself"
    if not table.measure.startswith(TRAINED):
        from fourfold.place import placed

        return f"{table.measure} {placed(config, dirs).logme:.3f} of random features"
    result = execute(config, outputs / "run", tuple(words), dirs)
    return f"{config.model.name} {config.freeze_strategy.name}: loss {result['metrics']['test']['loss']:.3f}"


def _generated(words: Sequence[str], dirs: Sequence[Path]) -> list[str]:
    config = configured(words, dirs)
    small = ["model.image_size=64"] if config.model.source == "torchvision" else []
    return [*(f"~dataset.kwargs.{key}" for key in config.dataset.kwargs), *GENERATED, *small]
