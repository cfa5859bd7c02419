"""The order of a training's images."""

import torch
from torch import Tensor

from kdtrain.runtime.rng import generator


def batches_of(seed: int, batch_size: int, total: int, epoch: int) -> tuple[Tensor, ...]:
    """Return the global batches of one epoch: each image once, in an order that depends on seed and epoch.

    Args:
        seed: The training's seed.
        batch_size: Images in a global batch; the last batch may have fewer.
        total: Images in the training split.
        epoch: The epoch, from 0.

    Returns:
        Image indices, int64 [batch_size] for each step.
    """
    order = torch.randperm(total, generator=generator(seed, "order", epoch))
    return tuple(torch.split(order, batch_size))
