"""What losses over pairs of images share: they see the global batch, in float32, and need two images."""

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.methods.base import Batch, MethodContext, at_least_float32
from kdtrain.runtime import distributed


def gathered(student_N: Tensor, teacher_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both networks' rows of the global batch, in float32: the student's with gradient, the teacher's without.

    Cast first: so the gradients of all ranks are summed in float32, as one process sums them.
    """
    return (
        distributed.gather_batch(at_least_float32(student_N), batch.size),
        distributed.gather_batch(at_least_float32(teacher_N).detach(), batch.size),
    )


def full_precision(values: Tensor) -> torch.autocast:
    """A block in which products are not cast down by an autocast around it: Gram matrices overflow float16."""
    return torch.autocast(values.device.type, enabled=False)


def refuse_single_image(method: str, setting: MethodContext) -> None:
    """Raises UserError where no batch ever holds two images."""
    if setting.batch_size < 2:
        raise UserError(
            f"recipe.batch_size: {method} compares images of a batch, so it needs at least 2, got {setting.batch_size}"
        )
