"""Which images a batch has."""

import torch
from torch import Tensor

from kdtrain.runtime.rng import generator


def batches_of(seed: int, batch_size: int, total: int, epoch: int) -> tuple[Tensor, ...]:
    """The global batches of image indices of one epoch, in order: every image once."""
    order = torch.randperm(total, generator=generator(seed, "order", epoch))
    return tuple(torch.split(order, batch_size))
