"""Precision and memory format: the fastest is taken, once, and nothing of the run is changed by looking for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fourfold import pace
from fourfold.assembly import assemble
from fourfold.compose import compose
from fourfold.config import ConfigError, RunConfig
from fourfold.dry_run import dry_run
from fourfold.pace import Compiled, Pace
from fourfold.ranks import Ranks
from fourfold.run import run
from fourfold.seeding import rng_state
from fourfold.trial import NoTrial, Pruned

TINY = [
    "dataset=glyph_digits", "model=micro_resnet", "freeze=full", "logger=none", "dataset.train_size=20", "dataset.val_size=10",
    "dataset.test_size=10", "trainer.batch_size=10", "trainer.device=cpu", "trainer.progress=false", "trainer.threads=1",
    "trainer.epochs=2",
]  # fmt: skip
AUTO = ("trainer.precision=auto", "trainer.channels_last=auto")
ALONE = Ranks(0, 1, torch.device("cpu"))


def config(*overrides: str) -> RunConfig:
    composed = compose([*TINY, *overrides])
    composed.model.weights = None
    return composed


def forced(monkeypatch: pytest.MonkeyPatch, *seconds: float | None) -> list[int]:
    """A probe that finds these seconds: fp32, fp32 channels_last, bf16, bf16 channels_last. Returns one item per call."""
    calls: list[int] = []

    def step_seconds(net: nn.Module, kits: Sequence[Any], batches: Any) -> list[float | None]:
        calls.append(len(kits))
        return list(seconds)

    monkeypatch.setattr(pace, "step_seconds", step_seconds)
    return calls


@pytest.mark.parametrize(
    ("seconds", "precision", "channels_last"),
    [
        ((4.0, 3.0, 2.0, 1.0), "bf16", True),
        ((4.0, 3.0, 1.0, 2.0), "bf16", False),
        ((4.0, 1.0, 2.0, 3.0), "fp32", True),
        ((1.0, 2.0, 3.0, 4.0), "fp32", False),
        ((1.0, 0.97, 0.98, 0.99), "fp32", False),  # no faster than a clock can tell
        ((4.0, None, 3.0, None), "bf16", False),
        ((None, None, None, None), "fp32", False),
    ],
)
def test_the_fastest_is_taken(
    seconds: tuple[float | None, ...], precision: str, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, *seconds)
    (tmp_path / "run").mkdir()
    parts = assemble(config(*AUTO), tmp_path / "run", ALONE)
    assert parts.kit.autocast == (torch.bfloat16 if precision == "bf16" else None)
    assert parts.kit.channels_last == channels_last
    (weight,) = (each for name, each in parts.net.named_parameters() if each.ndim == 4 and each.shape[1:] == (3, 3, 3))
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


class Ends(NoTrial):
    def should_prune(self) -> bool:
        return True


def test_the_choice_survives_a_resume_and_holds_for_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    calls = forced(monkeypatch, 4.0, 3.0, 2.0, 1.0)
    with pytest.raises(Pruned):
        run(config(*AUTO), study / "one", trial=Ends())
    forced(monkeypatch, 1.0, 2.0, 3.0, 4.0)  # the machine has changed its mind
    resumed = run(config(*AUTO), study / "one")
    other = run(config(*AUTO, "seed=1", "freeze=classifier_only", "freeze.pretrained=true"), study / "two")
    assert calls == [4]
    for result in (resumed, other):
        assert (result["precision"], result["channels_last"]) == ("bf16", True)
    assert resumed["config"]["trainer"]["precision"] == "auto"
    assert json.loads((study / "two" / "pace.json").read_text())["seconds"]["bf16 channels_last"] == 1.0
    elsewhere = run(config(*AUTO), tmp_path / "elsewhere" / "one")
    assert (elsewhere["precision"], elsewhere["channels_last"]) == ("fp32", False)


def test_what_is_fixed_stays_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = forced(monkeypatch, 2.0, 1.0)
    result = run(config("trainer.precision=auto", "trainer.channels_last=true"), tmp_path / "one" / "run")
    assert (result["precision"], result["channels_last"]) == ("bf16", True)
    result = run(config("trainer.precision=bf16", "trainer.channels_last=auto"), tmp_path / "two" / "run")
    assert (result["precision"], result["channels_last"]) == ("bf16", True)
    assert calls == [2, 2]


def test_a_probed_run_is_the_run_with_what_was_chosen(tmp_path: Path) -> None:
    """Weights, statistics, random numbers: the real probe leaves all as it was."""
    probed = run(config(*AUTO), tmp_path / "probed" / "run")
    chosen = (f"trainer.precision={probed['precision']}", f"trainer.channels_last={str(probed['channels_last']).lower()}")
    told = run(config(*chosen), tmp_path / "told" / "run")
    one, other = (torch.load(tmp_path / name / "run" / "last.pt")["model"] for name in ("probed", "told"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert probed["metrics"] == told["metrics"]
    seconds = json.loads((tmp_path / "probed" / "run" / "pace.json").read_text())["seconds"]
    assert set(seconds) == {"fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"}


def test_the_probe_draws_no_random_number_and_takes_the_median_of_its_clock(tmp_path: Path) -> None:
    parts = assemble(config("freeze=classifier_only"), tmp_path, ALONE)
    net = nn.Sequential(parts.net, nn.Dropout(0.5))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    numbers = rng_state()
    ticks = iter([0, 100, 100, 103, 103, 105, 105, 109])  # one warm-up, then 3, 2 and 4 seconds
    (batches,) = parts.train.at(0, stop_step=1)
    assert pace.step_seconds(net, [parts.kit], batches, clock=lambda: float(next(ticks))) == [3.0]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(rng_state()["torch"], numbers["torch"])
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_choice_that_is_far_behind_takes_no_more_steps(tmp_path: Path) -> None:
    parts = assemble(config(), tmp_path, ALONE)
    (batches,) = parts.train.at(0, stop_step=1)
    # two choices, warm-up and first timed step of each: 4 seconds against 1; only the second goes on, with 2 and 3
    ticks = iter([0, 9, 9, 18, 20, 24, 24, 25, 30, 32, 32, 35])
    assert pace.step_seconds(parts.net, [parts.kit, parts.kit], batches, clock=lambda: float(next(ticks))) == [4.0, 2.0]


def test_a_dry_run_probes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = forced(monkeypatch, 4.0, 3.0, 2.0, 1.0)
    dry_run(config(*AUTO, "trainer.compile=true"))
    assert not calls


def test_auto_is_another_run_and_compiling_is_not() -> None:
    from dataclasses import asdict

    from fourfold.identity import run_id

    ids = {run_id(asdict(config(*each))) for each in ((), AUTO[:1], AUTO[1:], AUTO)}
    assert len(ids) == 4
    assert run_id(asdict(config("trainer.compile=true"))) == run_id(asdict(config()))


def test_an_unknown_memory_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.channels_last=sometimes is not one of true, false, auto"):
        config("trainer.channels_last=sometimes")


def test_a_choice_that_is_no_longer_offered_is_made_anew() -> None:
    choice = Pace("bf16", True, {})
    assert pace._same(choice, Pace("bf16", True, {"bf16 channels_last": 1.0}))
    assert not pace._same(choice, Pace("fp16", True, {}))
    assert not pace._same(choice, None)


def eager(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    """torch.compile with another backend: what is tested is ours, and the compiler takes a minute."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend))


def test_a_compiled_run_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch, "aot_eager")
    compiled = run(config("trainer.compile=true"), tmp_path / "compiled")
    plain = run(config(), tmp_path / "plain")
    assert compiled["compile_seconds"] > 0
    assert plain["compile_seconds"] is None
    one, other = (torch.load(tmp_path / name / "last.pt")["model"] for name in ("compiled", "plain"))
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # the same operations, perhaps in another order


def test_what_trains_on_stored_activations_is_not_compiled_and_what_trains_on_images_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager(monkeypatch, "aot_eager")
    words = ("freeze=last_blocks", "freeze.pretrained=true", f"paths.cache={tmp_path}/cache", "trainer.compile=true")
    compiled = run(config(*words), tmp_path / "compiled")
    plain = run(config(*words[:3]), tmp_path / "plain")
    assert compiled["frontier"] == plain["frontier"] is not None
    assert compiled["compile_seconds"] == 0
    assert compiled["metrics"] == plain["metrics"]
    augmented = run(config(*words, "transform=light"), tmp_path / "augmented")
    assert augmented["frontier"] is not None
    assert augmented["compile_seconds"] > 0


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refusing(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    class Scaled(nn.Module):
        """Not one of torch's own, which some versions of it never compile alone."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * self.linear(inputs)

    eager(monkeypatch, refusing)
    net = Scaled()
    inputs = torch.randn(4, 3)
    expected = net(inputs)
    compiled = Compiled(net)
    compiled.use(True)
    assert torch.equal(net(inputs), expected)
    assert torch.equal(net(inputs), expected)
    assert compiled.failed
    assert compiled.seconds is None
    (line,) = (record.getMessage() for record in caplog.records if record.name == "fourfold.pace")
    assert "going on without" in line
    assert "no compiler on this machine" in line
