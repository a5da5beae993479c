"""What pruning saves, and whether it still finds the best: searches of the embedded study's large cells, unpruned and pruned.

The random sampler gives every search the same points, so the searches differ by what the pruner ended and by nothing else. They
validate after every epoch, where the study itself does so twice in a run.

    python scripts/bench/pruning.py [OVERRIDES]     such as quadrant=middle_large,different_large search.n_trials=40
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fourfold.study.ledger import kept
from fourfold.study.trials import TrialView

PRUNERS = ("none", "median", "asha")
SEARCH = [
    "experiment=quadrants_embedded", "freeze=full", "quadrant=similar_large,different_large", "seed=0", "trainer.val_every=1",
    "logger=none", "optimizer.lr=tag(log,interval(1e-5,1e-1))", "search.n_trials=20", "search.sampler=random",
]  # fmt: skip


def search(pruner: str, folder: Path, overrides: Sequence[str]) -> list[TrialView]:
    """The trials of the search with this pruner, of all cells."""
    words = [*SEARCH, *overrides, f"search.pruner={pruner}", f"study={pruner}", f"paths.outputs={folder}"]
    subprocess.run([sys.executable, "-m", "fourfold", "-m", *words], stdout=subprocess.DEVNULL, check=True)
    return kept(folder / pruner)


def epochs(views: Sequence[TrialView]) -> int:
    return sum(view.epochs or 0 for view in views)


def best(views: Sequence[TrialView]) -> TrialView:
    return max((view for view in views if view.state == "done"), key=lambda view: view.value or 0.0)


def lr(view: TrialView) -> str:
    return next(word for word in view.overrides if word.startswith("optimizer.lr="))


def main(overrides: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        show({pruner: search(pruner, Path(temporary), overrides) for pruner in PRUNERS})


def show(found: dict[str, list[TrialView]]) -> None:
    cells = sorted({view.cell for view in found["none"]})
    print(f"{'cell':28} {'pruner':7} {'trials':>6} {'pruned':>6} {'epochs':>6} {'saved':>6} {'val/acc':>8}  best")
    for cell in cells:
        for pruner, views in found.items():
            mine = [view for view in views if view.cell == cell]
            line(cell, pruner, mine, [view for view in found["none"] if view.cell == cell])
    for pruner, views in found.items():
        line("best of all cells", pruner, views, found["none"])


def line(name: str, pruner: str, views: Sequence[TrialView], unpruned: Sequence[TrialView]) -> None:
    saved = 1 - epochs(views) / epochs(unpruned)
    pruned = sum(view.state == "pruned" for view in views)
    chosen, wanted = best(views), best(unpruned)
    same = (chosen.cell, lr(chosen)) == (wanted.cell, lr(wanted))
    verdict = "" if pruner == "none" else ": the same" if same else ": another"
    print(
        f"{name:28} {pruner:7} {len(views):6} {pruned:6} {epochs(views):6} {saved:6.0%} {chosen.value:8.4f}  "
        f"trial {chosen.number} {lr(chosen)}{verdict}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
