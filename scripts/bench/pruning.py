"""What pruning saves, and whether it still finds the best: one search of the embedded digits, unpruned and pruned.

The random sampler gives every search the same points, so the searches differ by what the pruner ended and by nothing else.

    python scripts/bench/pruning.py [OVERRIDES]     such as search.n_trials=40 hydra.sweeper.workers=4
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from fourfold.study.ledger import kept
from fourfold.study.trials import TrialView

SEARCH = [
    "hydra/sweeper=fourfold", "dataset=glyph_digits", "dataset.train_size=500", "dataset.val_size=1000",
    "dataset.test_size=100", "model=micro_resnet", "freeze=from_scratch",
    "trainer.epochs=9", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false",
    "logger=none", "optimizer.lr=tag(log,interval(1e-5,1e-1))", "search.n_trials=20",
    "search.sampler=random", "study=pruning",
]  # fmt: skip


def begin(pruner: str, folder: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """Begin the search with this pruner; they run side by side, since epochs are counted and not seconds."""
    words = [*SEARCH, *overrides, f"search.pruner={pruner}", f"paths.outputs={folder}/{pruner}"]
    return subprocess.Popen([sys.executable, "-m", "fourfold", "-m", *words], stdout=subprocess.DEVNULL)


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        searches = {pruner: begin(pruner, folder, overrides) for pruner in ("none", "median", "asha")}
        codes = [search.wait() for search in searches.values()]
        if any(codes):
            sys.exit("a search has failed")
        found: dict[str, list[TrialView]] = {pruner: kept(folder / pruner / "pruning") for pruner in searches}
    whole = sum(view.epochs or 0 for view in found["none"])
    print(f"{'pruner':8} {'trials':>6} {'pruned':>6} {'epochs':>6} {'saved':>6} {'val/acc':>8}  best")
    for pruner, views in found.items():
        epochs = sum(view.epochs or 0 for view in views)
        best = max((view for view in views if view.state == "done"), key=lambda view: view.value or 0.0)
        (lr,) = (word for word in best.overrides if word.startswith("optimizer.lr="))
        pruned = sum(view.state == "pruned" for view in views)
        print(
            f"{pruner:8} {len(views):6} {pruned:6} {epochs:6} {1 - epochs / whole:6.0%} {best.value:8.4f}  "
            f"trial {best.number} {lr}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
