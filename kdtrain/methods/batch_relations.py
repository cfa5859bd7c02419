"""Helpers of relational losses: they compare images of the global batch, in at least float32."""

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.methods.base import Batch, MethodContext, at_least_float32
from kdtrain.runtime import distributed


def gather_global_batch(rows: Tensor, batch: Batch) -> Tensor:
    """Return the rows [N, ...] of all ranks in at least float32, with gradient if the rows have one.

    The cast comes first, so that the gradients of all ranks are summed in float32, as in one process.
    """
    return distributed.gather_batch(at_least_float32(rows), batch.size)


def no_autocast(values: Tensor) -> torch.autocast:
    """Return a context without autocast on the values' device: Gram matrices overflow float16."""
    return torch.autocast(values.device.type, enabled=False)


def require_two_images(method: str, context: MethodContext) -> None:
    """Raise UserError if no batch has two images to compare."""
    if context.batch_size < 2:
        raise UserError(
            f"recipe.batch_size: {method} compares images of a batch, so it needs at least 2, got {context.batch_size}"
        )
