"""How a training computes: half precision, TF32, deterministic kernels."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from kdtrain.config.recipe import Precision
from kdtrain.errors import UserError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of both networks' forward passes in training. Evaluation runs outside it, in float32."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


@contextmanager
def backend_settings(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set deterministic kernels and TF32 as the precision says, and restore the process's own settings at the end.

    torch's default generators, which dropout draws from, are restored as well.

    Without it torch allows TF32 in convolutions whatever `fp32` says. Matrix products never use TF32: Gram matrices and
    distances need all their digits.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(
            f"recipe.precision: tf32 needs a GPU of compute capability 8.0 or newer, but the device is {device.type};"
            " write fp32"
        )
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, precision == "tf32", False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
