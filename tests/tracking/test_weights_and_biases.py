import asyncio
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from wandb.sdk.lib import run_stopping

from fourfold.config import ConfigError, RunConfig
from fourfold.tracking import Tracker, open_tracker, weights_and_biases
from fourfold.tracking.weights_and_biases import histogram, short_name, tags
from fourfold.trial import NoTrial, Pruned, Stopped, Trial

from .fake_server import FakeServer

pytestmark = pytest.mark.usefixtures("wandb_session")

ROWS = [{"epoch": epoch, "lr": 0.1 / (epoch + 1), "train/loss": 2.5 - epoch, "val/acc": 0.25 * epoch} for epoch in range(3)]
OVERRIDES = ("freeze_strategy=full", "optimizer.lr=0.25", "logger=wandb")

Open = Callable[..., Tracker]


@pytest.fixture
def opened(config: RunConfig, folder: Path) -> Open:
    """Opens a tracker that tells W&B alone."""
    config.logger.wandb.enabled = True

    def opened(folder: Path = folder, trial: Trial | None = None, **options: Any) -> Tracker:
        for name, value in options.items():
            setattr(config.logger.wandb, name, value)
        return open_tracker(config, folder, run_id="abcd", overrides=OVERRIDES, trial=trial)

    return opened


@dataclass(frozen=True)
class Recorded:
    """What one of W&B's run folders holds, by its own reader."""

    id: str
    began: str
    online: bool
    name: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    config: dict[str, Any]
    tags: list[str]
    artifacts: list[dict[str, Any]]
    exit_code: int


def recorded(run_dir: Path) -> Recorded:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_dir)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in map(json.loads, lines):
        by_kind[record["type"]].append(record[record["type"]])
    run = by_kind["run"][0]
    return Recorded(
        id=run["run_id"],
        began=run["start_time"],
        online=run_dir.name.startswith("run-"),
        name=run["display_name"],
        rows=[own(row["item"]) for row in by_kind["history"]],
        summary={key: value for part in by_kind["summary"] for key, value in own(part.get("update", {})).items()},
        config=run["config"]["update"],
        tags=by_kind["run"][-1]["tags"],  # each change is a record of the whole run
        artifacts=by_kind["artifact"],
        exit_code=by_kind["exit"][0].get("exit_code", 0),
    )


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Without the columns that W&B adds."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def runs_of(folder: Path) -> list[Recorded]:
    """All that W&B has written for this run's study, in the order in which it began."""
    paths = [path for path in (folder.parent / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink()]
    return sorted(map(recorded, paths), key=lambda run: run.began)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("fourfold")]


def test_runs_that_are_open_at_once_are_told_apart(opened: Open, folder: Path) -> None:
    """As those of several heads that train together."""
    other = folder.parent / "other-run"
    other.mkdir()
    with opened() as one, opened(other) as two:
        for row in ROWS:
            one.log(row)
            two.log({**row, "epoch": row["epoch"] + 10})
        one.summary({"test/acc": 0.4})
        two.summary({"test/acc": 0.9})
    first, second = runs_of(folder)
    assert first.rows == ROWS
    assert [row["epoch"] for row in second.rows] == [row["epoch"] + 10 for row in ROWS]
    assert (first.summary["test/acc"], second.summary["test/acc"]) == (0.4, 0.9)


def test_an_offline_run_holds_exactly_what_was_told(opened: Open, folder: Path) -> None:
    with opened() as tracker:
        for row in ROWS:
            tracker.log(row)
        tracker.summary({"best/val_acc": 0.5, "test/acc": 0.4})
    (run,) = runs_of(folder)
    assert not run.online
    assert run.rows == ROWS
    assert run.summary == ROWS[-1] | {"best/val_acc": 0.5, "test/acc": 0.4, "status": "finished"}
    assert (run.exit_code, run.name) == (0, "freeze_strategy=full,lr=0.25")
    assert run.id == (folder / "wandb_id").read_text()
    assert run.id.startswith("abcd-")
    assert run.config["optimizer"]["lr"] == 0.25
    assert run.config["run_id"] == "abcd"
    assert run.tags == ["glyphs", "micro_resnet", "full"]


def test_the_hint_is_given_once_per_study_and_its_command_uploads_everything(
    opened: Open, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened() as tracker:
        tracker.log(ROWS[0])
    with opened(folder.with_name("another")) as second:
        second.log(ROWS[1])
    assert tracker.hint is not None
    assert second.hint is None
    assert (folder.parent / "wandb" / "how_to_sync.txt").read_text().strip() == tracker.hint
    command = shlex.split(tracker.hint.split("`")[3])
    assert command[-1] == "study/wandb"
    with FakeServer() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, check=True, timeout=60)
    ids = [(folder.with_name(name) / "wandb_id").read_text() for name in (folder.name, "another")]
    assert server.rows == {ids[0]: [ROWS[0]], ids[1]: [ROWS[1]]}


def test_a_resumed_run_keeps_its_id(opened: Open, folder: Path) -> None:
    for row in ROWS[:2]:
        with opened() as tracker:
            tracker.log(row)
    first, second = runs_of(folder)
    assert first.id == second.id
    assert (first.rows, second.rows) == ([ROWS[0]], [ROWS[1]])


def test_a_raising_run_is_marked_failed_and_the_next_one_is_clean(opened: Open, folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened() as tracker:  # noqa: PT012
        tracker.log(ROWS[0])
        raise ZeroDivisionError
    with opened(folder.with_name("next")) as tracker:
        tracker.log(ROWS[1])
    failed, following = runs_of(folder)
    assert (failed.exit_code, failed.rows) == (1, [ROWS[0]])
    assert (following.exit_code, following.rows) == (0, [ROWS[1]])


class Third(NoTrial):
    """Of its cell."""

    cell, number = "freeze_strategy=full,seed=0", 2


def test_a_run_says_which_trial_it_is(opened: Open, folder: Path) -> None:
    for trial in (Third(), None):
        with opened(trial=trial) as tracker:
            tracker.log(ROWS[0])
    of_a_search, alone = runs_of(folder)
    assert of_a_search.config["trial"] == {"cell": "freeze_strategy=full,seed=0", "number": 2}
    assert "trial" not in alone.config


ENDS = [
    (None, "finished", 0, [], None),
    (Pruned("behind"), "pruned", 0, ["pruned"], None),
    (ValueError("no such\nfile"), "failed", 1, ["failed"], "ValueError: no such file"),
    (ConfigError("model.name=x: choose y"), "failed", 1, ["failed"], "model.name=x: choose y"),
    (KeyboardInterrupt("saved"), "interrupted", 1, [], None),
    (Stopped("saved"), "interrupted", 1, [], None),
]


def end_by(error: BaseException | None, tracker: Tracker) -> None:
    with suppress(BaseException), tracker:
        tracker.log(ROWS[0])
        if error is not None:
            raise error


@pytest.mark.parametrize(("error", "status", "exit_code", "marks", "failure"), ENDS)
def test_each_end_is_marked(
    error: BaseException | None,
    status: str,
    exit_code: int,
    marks: list[str],
    failure: str | None,
    opened: Open,
    folder: Path,
) -> None:
    end_by(error, opened(tags=["mine"]))
    (run,) = runs_of(folder)
    assert (run.summary["status"], run.exit_code) == (status, exit_code)
    assert run.tags == ["glyphs", "micro_resnet", "full", "mine", *marks]
    assert run.summary.get("failure") == failure


@pytest.mark.parametrize("error", [Pruned("behind"), ValueError("no such file")])
def test_a_run_that_goes_on_and_finishes_loses_its_mark(
    error: Exception, opened: Open, folder: Path, server: FakeServer
) -> None:
    identity = weights_and_biases.saved_id(folder / "wandb_id", "abcd")
    end_by(error, opened(tags=["mine"]))
    assert server.runs[identity]["tags"][3:] == ["mine", "failed" if isinstance(error, ValueError) else "pruned"]
    end_by(None, opened(tags=["mine"]))
    assert server.runs[identity]["tags"] == ["glyphs", "micro_resnet", "full", "mine"]
    assert server.summary[identity]["status"] == "finished"
    assert server.summary[identity].get("failure") is None
    assert server.exit_code == {identity: 0}


def test_the_mark_goes_offline_too(opened: Open, folder: Path) -> None:
    for error in (ValueError("no such file"), None):
        end_by(error, opened())
    first, second = runs_of(folder)  # `wandb sync` puts the second over the first
    assert (first.summary["failure"], second.summary["failure"]) == ("ValueError: no such file", None)
    assert second.summary["status"] == "finished"
    assert second.tags == ["glyphs", "micro_resnet", "full"]


def test_a_run_that_was_never_closed_does_not_take_the_next_ones_rows(opened: Open, folder: Path) -> None:
    opened().__enter__().log(ROWS[0])
    with opened(folder.with_name("next")) as tracker:
        tracker.log(ROWS[1])
    assert [run.rows for run in runs_of(folder)] == [[ROWS[0]], [ROWS[1]]]


def test_tracking_draws_no_random_numbers(opened: Open) -> None:
    def state() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()

    before = state()
    with opened() as tracker:
        tracker.log(ROWS[0])
        tracker.summary({"test/acc": 0.5})
    assert state() == before


def test_an_online_run_reaches_the_server(opened: Open, folder: Path, server: FakeServer) -> None:
    with opened(tags=["mine", " ", "x" * 80]) as tracker:
        for row in ROWS:
            tracker.log(row)
        tracker.summary({"best/val_acc": 0.5})
    identity = (folder / "wandb_id").read_text()
    run = server.runs[identity]
    assert server.rows == {identity: ROWS}
    assert server.summary[identity]["best/val_acc"] == 0.5
    assert server.exit_code == {identity: 0}
    assert (run["project"], run["groupName"], run["jobType"]) == ("fourfold", "study", "train")
    assert run["displayName"] == "freeze_strategy=full,lr=0.25"
    assert run["tags"] == ["glyphs", "micro_resnet", "full", "mine", "x" * 64]
    assert run["config"]["dataset"]["loader"]["sampler"] == ""
    assert tracker.hint is None


def test_two_online_runs_do_not_merge(opened: Open, folder: Path, server: FakeServer) -> None:
    with pytest.raises(ZeroDivisionError), opened() as tracker:  # noqa: PT012
        tracker.log(ROWS[0])
        raise ZeroDivisionError
    with opened(folder.with_name("next")) as tracker:
        tracker.log(ROWS[1])
    first, second = ((folder.with_name(name) / "wandb_id").read_text() for name in (folder.name, "next"))
    assert server.rows == {first: [ROWS[0]], second: [ROWS[1]]}
    assert server.exit_code == {first: 1, second: 0}


def test_a_refused_key_means_offline(opened: Open, folder: Path, server: FakeServer) -> None:
    server.accepts_key = False
    with opened() as tracker:
        tracker.log(ROWS[0])
    (run,) = runs_of(folder)
    assert (run.online, run.rows) == (False, [ROWS[0]])
    assert tracker.hint is not None


@pytest.mark.parametrize("failing", ["the whole server", "the start of the run"])
def test_a_server_that_fails_means_offline_and_is_waited_for_once(
    failing: str, opened: Open, folder: Path, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    if failing == "the whole server":
        server.die()
    server.accepts_runs = False
    with opened() as tracker:
        tracker.log(ROWS[0])
    began = time.monotonic()
    with opened(folder.with_name("next")) as tracker:
        tracker.log(ROWS[1])
    assert time.monotonic() - began < weights_and_biases.INIT_TIMEOUT
    assert len(warnings(caplog)) == 1
    first, second = (run for run in runs_of(folder) if not run.online)
    assert (first.rows, second.rows) == ([ROWS[0]], [ROWS[1]])
    assert first.id == (folder / "wandb_id").read_text()


def test_online_without_a_key_means_offline_and_asks_nobody(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(mode="online") as tracker:
        tracker.log(ROWS[0])
    assert [run.rows for run in runs_of(folder)] == [[ROWS[0]]]
    assert "logger.wandb.mode=online, but W&B has no key here" in warnings(caplog)[0]


def test_a_server_that_dies_in_mid_run_costs_the_finish_timeout_and_no_row(
    opened: Open, folder: Path, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    with opened() as tracker:
        tracker.log(ROWS[0])
        server.die()
        for row in ROWS[1:]:
            tracker.log(row)
        began = time.monotonic()
    assert time.monotonic() - began < weights_and_biases.FINISH_TIMEOUT + 3
    (run,) = runs_of(folder)
    assert (run.online, run.rows) == (True, ROWS)
    assert tracker.hint is not None
    assert "--include-online" in tracker.hint
    assert len(warnings(caplog)) == 1


def test_the_stop_button_asks_for_the_end(opened: Open, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # W&B talks to its server at the start and every 15 s, and asks its own service as rarely.
    monkeypatch.setattr(run_stopping, "_SLEEP", lambda seconds: asyncio.sleep(0.05))
    server.stopped = True
    with opened() as tracker:
        deadline = time.monotonic() + 20
        while not tracker.stop_requested and time.monotonic() < deadline:
            time.sleep(0.05)
        assert tracker.stop_requested
    server.stopped = False
    with opened() as tracker:
        assert not tracker.stop_requested


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds W&B's process by /proc, which only Linux has")
def test_a_dead_wandb_process_ends_neither_the_run_nor_the_next(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened() as tracker:
        tracker.log(ROWS[0])
        os.kill(core_process(), signal.SIGKILL)
        for row in ROWS[1:]:
            tracker.log(row)
        tracker.summary({"test/acc": 0.5})
    assert len(warnings(caplog)) == 1
    with opened(folder.with_name("next")) as tracker:
        tracker.log(ROWS[0])
    identity = (folder.with_name("next") / "wandb_id").read_text()
    assert recorded(next((folder.parent / "wandb").glob(f"*-{identity}"))).rows == [ROWS[0]]


def core_process() -> int:
    """The process id of W&B's service, a child of this process."""
    children = (number for path in Path("/proc/self/task").glob("*/children") for number in path.read_text().split())
    return next(int(number) for number in children if "wandb-core" in Path(f"/proc/{number}/cmdline").read_text())


def test_a_study_folder_that_wandb_cannot_write_ends_no_run(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "wandb").write_text("a file where W&B wants a folder")
    with opened() as tracker:
        tracker.log(ROWS[0])
        tracker.summary({"test/acc": 0.5})
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_the_users_own_wandb_mode_is_respected(
    mode: str, opened: Open, folder: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with opened() as tracker:
        tracker.log(ROWS[0])
    assert server.runs == {}
    assert len(runs_of(folder)) == (mode == "offline")


def test_the_best_model_is_kept_as_an_artifact_when_asked_for(opened: Open, folder: Path) -> None:
    (folder / "best.pt").write_bytes(b"weights")
    for wanted in (False, True):
        with opened(log_model=wanted) as tracker:
            tracker.log_model(folder / "best.pt")
    without, having = runs_of(folder)
    assert without.artifacts == []
    (artifact,) = having.artifacts
    assert artifact["type"] == "model"
    assert "best" in artifact["aliases"]
    assert [entry["path"] for entry in artifact["manifest"]["contents"]] == ["best.pt"]
    assert not [path for path in Path(os.environ["WANDB_DATA_DIR"]).rglob("*") if path.is_file()]


def test_a_server_that_refuses_the_artifact_ends_no_run(
    opened: Open, folder: Path, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "best.pt").write_bytes(b"weights")
    with opened(log_model=True) as tracker:
        tracker.log(ROWS[0])
        tracker.log_model(folder / "best.pt")
        tracker.log(ROWS[1])
    assert len(warnings(caplog)) == 1
    assert list(server.rows.values()) == [ROWS[:2]]


def test_watching_follows_what_learns_and_lets_go_of_the_model(opened: Open, folder: Path) -> None:
    model = nn.Linear(4, 2)
    model.bias.requires_grad_(False)
    with opened(watch=True) as tracker:
        tracker.watch(model)
        for row in ROWS[:2]:
            for _ in range(weights_and_biases.WATCH_EVERY):
                model(torch.ones(1, 4)).sum().backward()
            model.bias.requires_grad_(True)
            tracker.log(row)
    ((first, second),) = (run.rows for run in runs_of(folder))
    assert {name: first[name] for name in ROWS[0]} == ROWS[0]
    assert sum(first["gradients/weight.values"]) == model.weight.numel()
    assert not [name for name in first if "bias" in name]
    assert sum(second["gradients/bias.values"]) == model.bias.numel()
    assert not model.weight._backward_hooks
    assert not model.bias._backward_hooks


def test_gradients_that_are_not_finite_are_no_obstacle() -> None:
    assert sum(histogram(torch.tensor([1.0, float("inf"), float("nan")])).histogram) == 3


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), ""),
        (("model=vgg16", "optimizer.lr=0.01", "seed=1"), "model=vgg16,lr=0.01,seed=1"),
        (("+model.kwargs.depth=3", "paths.outputs=/tmp", "experiment=x"), "depth=3"),
        (("model.name=a", "dataset.name=b"), "model.name=a,dataset.name=b"),
        (("trainer.patience=3", "scheduler.patience=2"), "trainer.patience=3,scheduler.patience=2"),
        (("~trainer.patience",), ""),
    ],
)
def test_the_name_tells_what_sets_a_run_apart(overrides: tuple[str, ...], name: str) -> None:
    assert short_name(overrides) == name


def test_no_tag_is_empty_or_too_long_or_twice(config: RunConfig) -> None:
    config.model.name = "owner/" + "x" * 100
    config.logger.wandb.tags = ["", "full"]
    assert tags(config) == ["glyphs", "owner/" + "x" * 58, "full"]
