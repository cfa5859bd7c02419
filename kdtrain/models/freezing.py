"""Which parameters of a network train, and whether its training forward is random."""

from torch import nn

from kdtrain.errors import UserError
from kdtrain.models.config import Freeze

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RANDOM_LAYERS = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")


def freeze(encoder: nn.Module, kind: Freeze, name: str) -> None:
    """Freeze the encoder in place; encoder_but_norm leaves scale and shift of its normalization layers free.

    encoder_but_norm is `freeze_encoder` of setup 1. It raises UserError if there is no normalization layer.
    """
    if kind == "none":
        return
    encoder.requires_grad_(False)
    if kind == "encoder_but_norm":
        affine = [p for module in encoder.modules() if is_norm(module) for p in module.parameters(recurse=False)]
        if not affine:
            raise UserError(f"{name} has no normalization layers: freeze must be none or encoder")
        for parameter in affine:
            parameter.requires_grad_(True)


def is_norm(module: nn.Module) -> bool:
    """Return True for batch, layer, group, instance and RMS normalization of torch and of the libraries."""
    return "Norm" in type(module).__name__ and all(p.ndim == 1 for p in module.parameters(recurse=False))


def has_randomness(network: nn.Module) -> bool:
    """Return True if a training forward draws random numbers: dropout or stochastic depth of probability above 0."""
    return any(_drop_probability(module) > 0 for module in network.modules())


def _drop_probability(module: nn.Module) -> float:
    if not any(kind in type(module).__name__ for kind in RANDOM_LAYERS):
        return 0.0
    return max((float(getattr(module, name, 0.0) or 0.0) for name in ("p", "drop_prob")), default=0.0)
