"""What each transferability measure costs: CPU seconds for 1000 images, 10 classes, and 64 or 2048 features; median of three.

The features are noise with the classes' means in it, so that nothing is degenerate. The distances compare two such domains, the
prototypes of 100 with those of 10 classes. One thread: run it with OMP_NUM_THREADS=1.

    python scripts/bench/transferability.py [--images 1000] [--widths 64 2048] [--repeats 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from fourfold import transferability as t

CLASSES = 10


def measures(n: int, width: int) -> dict[str, Callable[[], object]]:
    """Each measure, ready to be called on data drawn once."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    means = generator.normal(size=(CLASSES, width))
    target, source = 0.3 * means[labels] + generator.normal(size=(n, width)), 0.5 + generator.normal(size=(n, width))
    random = [0.1 * means[labels] + generator.normal(size=(n, width)) for _ in range(2)]
    probs, guesses = generator.dirichlet(np.ones(1000), n), generator.integers(0, 1000, n)
    many, few = t.prototypes(source, np.arange(n) % 100), t.prototypes(target, labels)
    return {
        "lift": lambda: t.lift(target, random, labels),
        "logme_gain": lambda: t.logme_gain(target, random, labels),
        "linear_probe": lambda: t.linear_probe(target, labels),
        "knn_accuracy": lambda: t.knn_accuracy(target, labels),
        "logme": lambda: t.logme(target, labels),
        "h_score": lambda: t.h_score(target, labels),
        "h_score_shrunk": lambda: t.h_score_shrunk(target, labels),
        "gbc": lambda: t.gbc(target, labels),
        "transrate": lambda: t.transrate(target, labels),
        "n_leep": lambda: t.n_leep(target, labels),
        "leep (1000 source classes)": lambda: t.leep(probs, labels),
        "nce (1000 source classes)": lambda: t.nce(guesses, labels),
        "frechet_distance": lambda: t.frechet_distance(t.moments(source), t.moments(target)),
        "prototype_emd (100 x 10)": lambda: t.prototype_emd(many, few),
        "mmd": lambda: t.mmd(source, target),
        "proxy_a_distance": lambda: t.proxy_a_distance(source, target),
        "batch_norm_shift": lambda: t.batch_norm_shift(means[0], means[0] ** 2, means[1], means[1] ** 2),
    }


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds; one call on small data has loaded the libraries before."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for call in measures(200, 4).values():
        call()
    columns = [measures(given.images, width) for width in given.widths]
    print(f"{'CPU seconds for':28}", *(f"{given.images} x {width:<8}" for width in given.widths))
    for name in columns[0]:
        print(f"{name:28}", *(f"{seconds(column[name], given.repeats):<15.3f}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
