"""The order of a training's images."""

import torch
from torch import Tensor

from kdtrain.runtime.rng import generator


def batches_of(seed: int, batch_size: int, total: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the image indices of each global batch of an epoch: each image once, in an order drawn from the seed."""
    order = torch.randperm(total, generator=generator(seed, "order", epoch))
    return tuple(torch.split(order, batch_size))
