"""The workers of one training: this process's rank, and sums over all of them. One process is rank 0 of 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


_IDLE: ContextVar[bool] = ContextVar("idle", default=False)


@contextmanager
def idle(when: bool) -> Iterator[None]:
    """Within it, if so, this rank has no share of the batch: the image that it runs, to join the reductions of the
    others, is no part of the global batch and of its statistics."""
    before = _IDLE.set(when)
    try:
        yield
    finally:
        _IDLE.reset(before)


def is_idle() -> bool:
    return _IDLE.get()


def share_size(total: int) -> int:
    """How many of `total` indices are this rank's share."""
    return len(range(total)[rank() :: size()])


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


def gather_batch(local: Tensor, total: int) -> Tensor:
    """The global batch [total, ...] from each rank's `share` of it, in order, with gradient.

    Backward sums the gradients of all ranks: where every rank adds the same global loss, weighted by its share of the
    batch, and DDP averages, parameters get the gradient that one process would compute. A rank without a share
    (fewer images than ranks) gives whatever rows it has; they are left out.
    """
    if not dist.is_initialized():
        return local
    gathered: Tensor = _Gather.apply(local, total)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor, total: int) -> Tensor:
        context.local_rows = len(local)
        own = share_size(total)
        return gather_rows(local[:own], total)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        own = sum_over_ranks(gradient.contiguous().clone())[rank() :: size()]
        padding = context.local_rows - len(own)
        return torch.cat([own, own.new_zeros(padding, *own.shape[1:])]) if padding else own, None


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
