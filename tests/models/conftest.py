"""Model configurations as plain objects."""

from collections.abc import Callable
from typing import Any

import pytest

from fourfold.config import ModelConfig


@pytest.fixture(scope="session")
def model_config() -> Callable[..., ModelConfig]:
    """A configuration of random weights and untouched preprocessing, with some values changed."""

    def make(name: str, source: str = "torchvision", **changes: Any) -> ModelConfig:
        values: dict[str, Any] = {
            "_target_": None,
            "kwargs": {},
            "weights": None,
            "partial_weights": False,
            "repo": None,
            "trust": None,
            "image_size": None,
            "mean": None,
            "std": None,
            "interpolation": None,
            "crop_pct": None,
        }
        return ModelConfig(name=name, source=source, **{**values, **changes})

    return make
