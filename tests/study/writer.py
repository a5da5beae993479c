"""A process that does trials of a study and says of each that it was told, for tests that kill it or start several.

    python writer.py KIND FOLDER TRIALS

It says `ready` once everything is imported and begins at a line on its standard input, so that several begin at once.
"""

import subprocess
import sys
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from fourfold.study.storage import open_storage, persevere


def start(kind: str, folder: Path, trials: int, log: Path) -> subprocess.Popen[str]:
    """A writer that waits for its line; what it says goes to `log`."""
    command = [sys.executable, __file__, kind, str(folder), str(trials)]
    with log.open("w") as out:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, text=True)


def begin(writers: list[subprocess.Popen[str]], logs: list[Path]) -> None:
    """Let them begin together, once all are ready."""
    while not all("ready" in log.read_text() for log in logs):
        assert all(writer.poll() is None for writer in writers)
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()


def told(log: Path) -> list[int]:
    """Numbers of the trials that the writer knows to be stored."""
    return [int(line) for line in log.read_text().split("\n")[1:-1]]


def completed(storage: BaseStorage) -> dict[int, float | None]:
    """Value of each completed trial, by number."""
    trials = storage.get_all_trials(storage.get_study_id_from_name("study"))
    return {trial.number: trial.value for trial in trials if trial.state == TrialState.COMPLETE}


def do(storage: BaseStorage) -> int:
    """One trial, whose value is its number."""
    study = persevere(lambda: optuna.create_study(storage=storage, study_name="study", load_if_exists=True))
    trial = persevere(study.ask)
    persevere(lambda: study.tell(trial, trial.number, skip_if_finished=True))
    return trial.number


def main(kind: str, folder: str, trials: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("ready", flush=True)
    sys.stdin.readline()
    storage = open_storage(kind, Path(folder))
    for _ in range(int(trials)):
        print(do(storage), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
