"""The workers of one training: this process's rank, and sums over all of them. One process is rank 0 of 1."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: Tensor) -> Tensor:
    """This rank's part of the indices [n]: every size()-th, so that shards differ by one image at most."""
    return indices[rank() :: size()]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum over ranks, on all of them."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_rows(local_nK: Tensor, total: int) -> Tensor:
    """Rows computed on `share(arange(total))` of each rank, put back in order: [total, K] on every rank, exactly."""
    if not dist.is_initialized():
        return local_nK
    rows = torch.zeros(total, *local_nK.shape[1:], dtype=local_nK.dtype, device=local_nK.device)
    rows[rank() :: size()] = local_nK
    return sum_over_ranks(rows)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
