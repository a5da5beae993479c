"""timm, imported without the W&B client, which it wants for a helper that nothing here calls: half a second of every start."""

from fourfold.imports import without

with without("wandb"):
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
