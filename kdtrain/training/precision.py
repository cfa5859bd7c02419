"""How numbers are made: half precision, TF32, deterministic kernels, the current GPU."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from kdtrain.config.teacher import Precision
from kdtrain.errors import UserError
from kdtrain.runtime.device import kept_generators

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of both networks' forward passes in training. Evaluation runs outside it, in float32."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()


@contextmanager
def backend_settings(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set deterministic kernels and TF32 as the precision says, and restore the process's own settings at the end.

    Everything that makes numbers runs in it: training, evaluation, the test split, pictures. Otherwise they would
    depend on what the process has set before, and on torch's default, which allows TF32 in convolutions. Matrix
    products never use TF32: Gram matrices and distances need all their digits. A GPU is the current device in the
    context, on which pinned memory and compiled kernels depend. torch's default generators are restored as well.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(
            f"recipe.precision: tf32 needs a GPU of compute capability 8.0 or newer, but the device is {device.type};"
            " write fp32"
        )
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with current, kept_generators(device), _float32_precision("tf32" if precision == "tf32" else "ieee"):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def _float32_precision(convolutions: str) -> Iterator[None]:
    """Set how float32 is multiplied, by a CPU too, and restore the process's own settings.

    torch has newer settings for each operation beside older ones for the process, and raises if the older are read
    while the two differ. So both are set.
    """
    backends: Any = torch.backends  # whose settings are made at run time
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    others = (backends.cuda.matmul, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    before = [(each, each.fp32_precision) for each in (cudnn.conv, cudnn.rnn, *others)]
    process = _process_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = convolutions == "tf32"
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = convolutions
    for each in others:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        if process is not None:
            torch.set_float32_matmul_precision(process)
        cudnn.allow_tf32 = before[0][1] == "tf32"
        for each, value in before:
            each.fp32_precision = value


def _process_matmul_precision() -> str | None:
    """Return the older setting of matrix products, or None if the process uses the newer ones."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
