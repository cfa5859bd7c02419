"""What half precision means in training."""

from contextlib import AbstractContextManager, nullcontext

import torch

from kdtrain.config.recipe import Precision

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Both networks' forward passes in training; what is evaluated is computed in float32."""
    dtype = HALF.get(precision)
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
