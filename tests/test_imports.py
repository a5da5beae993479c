"""While modules are loaded, garbage is looked for seldom; afterwards as before, but not among what they have left."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold import imports


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_the_collector_is_afterwards_what_it_was() -> None:
    gc.set_threshold(123, 4, 5)
    imports.end()
    assert gc.get_threshold() == (123, 4, 5)
    for _ in range(2):  # a command within a command
        imports.begin()
    assert gc.get_threshold()[0] > 123
    assert gc.isenabled()
    imports.end()
    assert gc.get_threshold() == (123, 4, 5)
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    imports.end()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("words", [["--version"], ["nonsense=1"], ["report"]])
def test_a_command_leaves_it_as_it_was(words: list[str]) -> None:
    code = (
        "import gc, json, sys; before = gc.get_threshold(); from fourfold.cli import command; command(sys.argv[1:]); "
        "print(json.dumps([before, gc.get_threshold()]))"
    )
    told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout
    before, after = json.loads(told.splitlines()[-1])
    assert before == after


@pytest.mark.parametrize("first", ["import matplotlib, scipy.signal", "import matplotlib.pyplot", "pass"])
def test_metrics_come_without_what_they_do_not_use_and_leave_it_to_who_does(first: str) -> None:
    code = (
        f"import sys; {first}; import fourfold.metrics; "
        "assert sys.argv[1] != 'pass' or not {'matplotlib', 'scipy.signal'} & set(sys.modules); "
        "fourfold.metrics.create('classification', 3); import matplotlib.pyplot, scipy.signal; "
        "matplotlib.pyplot.Figure().add_subplot(); assert scipy.signal.convolve([1], [1])[0] == 1"
    )
    subprocess.run([sys.executable, "-c", code, first], check=True, timeout=120)


def test_a_library_is_loaded_without_looking_for_garbage_once() -> None:
    gc.set_threshold(123, 4, 5)
    with imports.loading("no_such_library"):
        assert gc.get_threshold()[0] > 123
    assert gc.get_threshold() == (123, 4, 5)
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    with imports.loading("json"):  # which is there
        assert gc.get_threshold() == (123, 4, 5)
    assert gc.get_freeze_count() == 0


def test_a_process_that_a_launcher_has_begun_loads_what_runs_are_made_of_so_too(tmp_path: Path) -> None:
    code = (
        "import gc, sys; from pathlib import Path; from fourfold.task import execute; from fourfold.compose import compose\n"
        "words = ['dataset=fake', 'dataset.shots=100000', 'model=micro_resnet', 'freeze=from_scratch', 'logger=none']\n"
        "try: execute(compose(words), Path(sys.argv[1]))\n"
        "except Exception as error: assert 'dataset.shots=100000' in str(error), error\n"
        "assert gc.get_freeze_count() > 100_000"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, timeout=120)
