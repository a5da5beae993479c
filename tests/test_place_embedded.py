"""With the backbone of the embedded study, every target lies in its quadrant, and dialled distances are ranked."""

from collections.abc import Callable

import pytest
from scipy.stats import spearmanr

from fourfold.compose import compose
from fourfold.place import placed
from fourfold.placement import Placement

pytestmark = pytest.mark.slow  # pretraining: 80 CPU seconds

Place = Callable[..., Placement]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    words = [f"paths.outputs={tmp_path_factory.mktemp('outputs')}", "logger=none", "trainer.device=cpu", "trainer.threads=1"]
    return lambda *more: placed(compose([*more, *words, "trainer.progress=false"]))


@pytest.mark.parametrize("quadrant", ["similar_small", "similar_large", "different_small", "different_large"])
def test_the_four_embedded_targets_lie_in_their_quadrants(place: Place, quadrant: str) -> None:
    label = compose([f"quadrant={quadrant}"]).quadrant
    found = place(f"quadrant={quadrant}")
    assert (found.similarity, *found.sizes) == (label.similarity, label.size)


@pytest.mark.parametrize("towards", ["textures", "clutter"])
def test_dialled_distances_are_ranked_by_the_lift(place: Place, towards: str) -> None:
    distances = (0.2, 0.4, 0.6, 0.8, 1.0)
    dial = ["dataset=dialled", f"dataset.kwargs.towards={towards}", "dataset.shots=100"]
    lifts = [place(*dial, f"dataset.kwargs.distance={distance}").lift.value for distance in distances]
    correlation = spearmanr(distances, lifts)[0]
    print(f"{towards}: Spearman correlation of distance and lift {correlation:.2f} ({lifts})")
    assert correlation < -0.99


def test_handwritten_digits_are_nearer_than_textures_and_further_than_rendered_ones(place: Place) -> None:
    near, middle, far = (place(f"quadrant={name}_large").lift.value for name in ("similar", "middle", "different"))
    assert near is not None
    assert middle is not None
    assert far is not None
    assert near > middle > far
