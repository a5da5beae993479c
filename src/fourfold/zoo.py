"""timm, imported without the W&B client, which it wants for a helper that nothing here calls: half a second of every start."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _missing(library: str) -> Iterator[None]:
    """Let a library that is not loaded yet look as if it were not installed."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]


with _missing("wandb"):
    import timm
    from timm.data import resolve_model_data_config
    from timm.models import adapt_input_conv, group_parameters
    from timm.optim import create_optimizer_v2, list_optimizers
    from timm.utils.model_ema import ModelEmaV3

__all__ = [
    "ModelEmaV3",
    "adapt_input_conv",
    "create_optimizer_v2",
    "group_parameters",
    "list_optimizers",
    "resolve_model_data_config",
    "timm",
]
