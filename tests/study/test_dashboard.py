"""optuna-dashboard shows a study as it is, while it goes on, and leaves it as it was."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from fourfold.study.ledger import Ledger
from fourfold.study.samplers import sampler
from fourfold.study.space import Cell
from fourfold.study.storage import open_storage

pytest.importorskip("optuna_dashboard")
pytestmark = pytest.mark.dashboard

SPACE = {"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True)}
CELLS = [Cell(f"freeze_strategy={name},seed=0", (f"freeze_strategy={name}",), (), SPACE, 3) for name in ("full", "head")]


def ledger(folder: Path) -> Ledger:
    pruner = optuna.pruners.NopPruner()
    made = sampler("random", 0, SPACE)
    return Ledger(open_storage("journal", folder), "mine", CELLS, ["maximize"], lambda _: made, pruner, 0, metrics=["val/acc"])


def do(book: Ledger, folder: Path, state: TrialState) -> None:
    """Take a trial and end it so, after two epochs."""
    job = book.take()
    assert job is not None
    storage = open_storage("journal", folder)
    for epoch in range(2):
        storage.set_trial_intermediate_value(job.trial_id, epoch, 0.1 * epoch)
    if state == TrialState.FAIL:
        book.set(job.trial_id, "reason", "NonFiniteLoss: the loss is nan")
    book.end(job.trial_id, state, [0.5] if state == TrialState.COMPLETE else None)


class Page:
    """A running optuna-dashboard."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str) -> Any:
        with urlopen(self._url + path, timeout=60) as answer:
            return json.load(answer)

    def put(self, path: str, data: dict[str, Any]) -> None:
        sent = Request(self._url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}, method="PUT")
        urlopen(sent, timeout=60).close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """Of a study with a trial of each kind."""
    book = ledger(tmp_path)
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        do(book, tmp_path, state)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from optuna_dashboard._cli import main; main()"
    words = ["--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref", str(tmp_path / "study.journal")]
    with (tmp_path.parent / "dashboard.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log)
    page = Page(f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                page.get("/api/meta")
                break
            except URLError:
                assert process.poll() is None, (tmp_path.parent / "dashboard.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield page
    finally:
        process.terminate()
        process.wait(timeout=30)


def shown(trials: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (
            trial["number"],
            trial["state"],
            trial.get("values"),
            {each["name"]: float(each["param_internal_value"]) for each in trial["params"]},
            {each["step"]: each["value"] for each in trial["intermediate_values"]},
            {each["key"] for each in trial["user_attrs"]},
        )
        for trial in trials
    ]


def kept(trials: list[optuna.trial.FrozenTrial]) -> list[tuple[Any, ...]]:
    states = {TrialState.COMPLETE: "Complete", TrialState.PRUNED: "Pruned", TrialState.FAIL: "Fail"}
    return [
        (trial.number, states[trial.state], trial.values, trial.params, trial.intermediate_values, {*trial.user_attrs})
        for trial in trials
    ]


def agree(page: Page, folder: Path) -> list[str]:
    """The page's states of all trials, which are those of the study, as is everything else of them."""
    storage = open_storage("journal", folder)
    studies = page.get("/api/studies")["study_summaries"]
    assert {study["study_name"] for study in studies} == {study.study_name for study in storage.get_all_studies()}
    states = []
    for study in studies:
        detail = page.get(f"/api/studies/{study['study_id']}")
        assert detail["name"] == study["study_name"]
        assert detail["objective_names"] == ["val/acc"]
        assert shown(detail["trials"]) == kept(storage.get_all_trials(study["study_id"]))
        states += [trial["state"] for trial in detail["trials"]]
    return sorted(states)


def test_it_shows_what_the_study_holds_and_changes_nothing(page: Page, tmp_path: Path) -> None:
    before = (tmp_path / "study.journal").read_bytes()
    assert agree(page, tmp_path) == ["Complete", "Fail", "Pruned"]
    assert (tmp_path / "study.journal").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_a_study_goes_on_beside_it_and_beside_its_notes(page: Page, tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for version in range(1, 4):
        page.put("/api/studies/0/note", {"version": version, "body": "worth a second look " * 1000})
        do(book, tmp_path, TrialState.COMPLETE)
    assert book.is_done()
    assert agree(page, tmp_path) == ["Complete"] * 4 + ["Fail", "Pruned"]
