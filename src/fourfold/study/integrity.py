"""What makes a study's numbers trustworthy, counted over all its runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.study.quadrants import Place
from fourfold.study.results import Result


@dataclass(frozen=True)
class Manifest:
    """The images that one seed of one place gave to every strategy; more than one hash: they did not see the same."""

    place: str
    seed: int
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class Integrity:
    """Counts of runs, and the names of those that break a rule (none should)."""

    runs: int
    opened_once: int
    opened_otherwise: tuple[str, ...]
    proven: int  # runs with frozen tensors whose hashes are equal before and after
    frozen_tensors: int  # of those runs together
    nothing_frozen: int
    broken: tuple[str, ...]  # runs whose frozen tensors moved
    manifests: tuple[Manifest, ...]
    compared: int  # runs whose test images were compared with their training images
    copied: int  # of those, the ones in which test images are copies of training images
    most_copies: int  # such images in one run

    @property
    def mixed(self) -> tuple[Manifest, ...]:
        return tuple(manifest for manifest in self.manifests if len(manifest.hashes) > 1)


def inspect(results: Sequence[Result], places: Sequence[Place]) -> Integrity:
    """Sealed test splits, proofs of freezing, and manifests of all `results`; pure."""
    frozen = [run for run in results if any(phase.get("tensors") for phase in run.proof)]
    broken = [run for run in frozen if any(phase.get("before") != phase.get("after") for phase in run.proof)]
    return Integrity(
        runs=len(results),
        opened_once=sum(run.test_opened == 1 for run in results),
        opened_otherwise=tuple(run.folder.name for run in results if run.test_opened != 1),
        proven=len(frozen) - len(broken),
        frozen_tensors=sum(max(int(phase.get("tensors") or 0) for phase in run.proof) for run in frozen if run not in broken),
        nothing_frozen=len(results) - len(frozen),
        broken=tuple(run.folder.name for run in broken),
        manifests=tuple(manifest for place in places for manifest in _manifests(place)),
        compared=sum(bool(run.copies) for run in results),
        copied=sum(run.copies.get("test", 0) > 0 for run in results),
        most_copies=max((run.copies.get("test", 0) for run in results), default=0),
    )


def _manifests(place: Place) -> list[Manifest]:
    seen: dict[int, set[str]] = {}
    for cell in place.cells:
        for setting in cell.settings:
            for run in setting.runs:
                if run.manifest_hash:
                    seen.setdefault(run.seed, set()).add(run.manifest_hash)
    return [Manifest(place.title, seed, tuple(sorted(hashes))) for seed, hashes in sorted(seen.items())]
