"""What of a network does not train, and what draws random numbers in training."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtrain.errors import UserError
from kdtrain.models.config import Freeze

BATCH_NORMS = (_BatchNorm,)
RANDOM_LAYERS = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")


def freeze(encoder: nn.Module, kind: Freeze, name: str) -> None:
    """none: everything trains. encoder: only the head. encoder_but_norm: and scale and shift of the encoder's
    normalisation layers (setup 1's `freeze_encoder`)."""
    if kind == "none":
        return
    encoder.requires_grad_(False)
    if kind == "encoder_but_norm":
        affine = [p for module in encoder.modules() if is_norm(module) for p in module.parameters(recurse=False)]
        if not affine:
            raise UserError(f"{name} has no normalisation layers: freeze must be none or encoder")
        for parameter in affine:
            parameter.requires_grad_(True)


def is_norm(module: nn.Module) -> bool:
    """Batch, layer, group, instance and root-mean-square normalisation, torch's and the libraries' own."""
    return "Norm" in type(module).__name__ and all(p.ndim == 1 for p in module.parameters(recurse=False))


def has_randomness(network: nn.Module) -> bool:
    """Whether a forward in training draws random numbers: dropout or stochastic depth with a probability above 0."""
    return any(_drop_probability(module) > 0 for module in network.modules())


def _drop_probability(module: nn.Module) -> float:
    if not any(kind in type(module).__name__ for kind in RANDOM_LAYERS):
        return 0.0
    return max((float(getattr(module, name, 0.0) or 0.0) for name in ("p", "drop_prob")), default=0.0)
