"""Networks by name. A new one is a file here, a line in MODELS and a test."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdtrain.models.lenet5 import lenet5_student, lenet5_teacher

ImageShape = tuple[int, int, int]
MODELS: dict[str, Callable[[ImageShape, int], nn.Module]] = {
    "lenet5_teacher": lenet5_teacher,
    "lenet5_student": lenet5_student,
}


def build(name: str, image_shape: ImageShape, classes: int, seed: int) -> nn.Module:
    """A network with fresh weights drawn from `seed`; the caller's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](image_shape, classes)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def forward_flops(network: nn.Module, image_shape: ImageShape) -> int:
    """FLOPs (2 per multiply-add) of one image's forward pass, counted by running it."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *image_shape))
    return int(counter.get_total_flops())
