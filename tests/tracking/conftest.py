import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import wandb

from fourfold.config import RunConfig
from fourfold.tracking import weights_and_biases

from .fake_server import KEY, FakeServer


@pytest.fixture
def config() -> RunConfig:
    """A run with nothing but placeholders, and no tracker."""
    config = _filled(RunConfig)
    config.study = "study"
    config.dataset.name, config.model.name, config.freeze_strategy.name = "glyphs", "micro_resnet", "full"
    config.regularizer.name = config.adapt.name = config.freeze_strategy.adapter.kind = "none"
    config.optimizer.lr = 0.25
    config.logger.wandb.project, config.logger.wandb.mode = "fourfold", "auto"
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study" / "glyphs-micro_resnet-full-s1-abcd"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def wandb_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A W&B session of the test's own: what one test finds out about the server must not reach the next."""
    monkeypatch.setattr(weights_and_biases, "INIT_TIMEOUT", 3.0)
    monkeypatch.setattr(weights_and_biases, "FINISH_TIMEOUT", 3.0)
    _forget_session()
    yield
    _forget_session()


@pytest.fixture
def server(wandb_session: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A W&B server that this process finds, with a key for it."""
    with FakeServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
        yield server


def _forget_session() -> None:
    wandb.teardown()
    weights_and_biases.logged_in.cache_clear()


def _filled(kind: Any) -> Any:
    """A value of the type: the dataclass with each field filled likewise, none where none is allowed."""
    if dataclasses.is_dataclass(kind):
        return kind(**{name: _filled(hint) for name, hint in get_type_hints(kind).items()})
    if get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
        return None
    if get_origin(kind) in (Union, types.UnionType):
        return _filled(get_args(kind)[0])
    return (get_origin(kind) or kind)()
