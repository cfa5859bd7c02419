"""The workers of one training: the rank of this process, and collective operations. A single process is rank 0 of 1.

R ranks, a global batch of N images, of which this rank has n; K columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of ranks R, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(indices: Tensor) -> Tensor:
    """Return this rank's share of the indices [N, ...]: every R-th one, so that shares differ by at most one."""
    return indices[rank() :: size()]


def share_size(total: int) -> int:
    """Return how many of `total` indices are this rank's share."""
    return len(range(total)[rank() :: size()])


_IDLE: ContextVar[bool] = ContextVar("idle", default=False)


@contextmanager
def idle(when: bool) -> Iterator[None]:
    """Mark this rank as idle in the context if `when`: it has no share of the batch.

    It runs one image to take part in the others' collective operations; that image is in no batch and no statistics.
    """
    before = _IDLE.set(when)
    try:
        yield
    finally:
        _IDLE.reset(before)


def is_idle() -> bool:
    """Return True inside `idle(True)`."""
    return _IDLE.get()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over the ranks, on every rank; `values` are overwritten with it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_rows(local_nK: Tensor, total: int) -> Tensor:
    """Return the rows of all ranks [N, K...], in the order of the global batch of `total`, without gradient.

    Exact: each row is added to zeros. `local_nK` has the rows of this rank's `share(arange(total))`.
    """
    if not dist.is_initialized():
        return local_nK
    rows_NK = torch.zeros(total, *local_nK.shape[1:], dtype=local_nK.dtype, device=local_nK.device)
    rows_NK[rank() :: size()] = local_nK
    return sum_over_ranks(rows_NK)


def gather_batch(local_nK: Tensor, total: int) -> Tensor:
    """Return the global batch [N, K...] from the shares of all ranks, as `gather_rows`, with gradient.

    The backward pass sums the gradients of all ranks. If every rank adds the same global loss, weighted by its share of
    the batch, and DDP averages, then parameters get the gradient that one process would compute. A rank without a share
    passes any rows; they are left out.
    """
    if not dist.is_initialized():
        return local_nK
    gathered: Tensor = _Gather.apply(local_nK, total)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local_nK: Tensor, total: int) -> Tensor:
        context.local_rows = len(local_nK)
        return gather_rows(local_nK[: share_size(total)], total)

    @staticmethod
    def backward(context: Any, gradient_NK: Tensor) -> tuple[Tensor, None]:
        own_nK = share(sum_over_ranks(gradient_NK.contiguous().clone()))
        padding = context.local_rows - len(own_nK)
        return torch.cat([own_nK, own_nK.new_zeros(padding, *own_nK.shape[1:])]) if padding else own_nK, None


def barrier() -> None:
    """Wait until every rank has called this."""
    if dist.is_initialized():
        dist.barrier()
