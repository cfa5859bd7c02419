"""Batch normalization over the global batch of several workers, with the result of one worker.

N images of this rank, C channels, R ranks. A count is the number of values of one channel.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.errors import UserError
from kdtrain.models.freezing import BATCH_NORMS
from kdtrain.runtime import distributed

CONVERTED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch normalization by one whose statistics in training are those of the images of all ranks.

    On a GPU the new modules are torch's SyncBatchNorm, which refuses a CPU; there they are CpuSyncBatchNorm.
    Parameters and buffers stay the same objects under the same names. A module in evaluation mode stays in it and
    uses its running statistics. `module` is changed in place, unless it is itself a batch normalization: then the new
    one is returned. A UserError names a subclass whose forward is not known.
    """
    kind = CpuSyncBatchNorm if device.type == "cpu" else SyncBatchNorm
    new: dict[nn.Module, nn.Module] = {}  # a module with two names stays one module
    for name, each in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(each, CONVERTED):
            continue
        if each not in new:
            new[each] = _converted(each, kind)
        if name:
            module.set_submodule(name, new[each])
    return new.get(module, module)


def _converted(
    norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, kind: "type[SyncBatchNorm | CpuSyncBatchNorm]"
) -> nn.Module:
    with_activation = hasattr(norm, "drop") and hasattr(norm, "act")  # timm's BatchNormAct2d
    if type(norm) not in CONVERTED and not with_activation:
        raise UserError(f"recipe.batch_norm: {type(norm).__name__} has no form over several workers; write per_worker")
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))
    if with_activation:
        new.drop, new.act = norm.drop, norm.act
    new.training = norm.training
    return new


def trains_batch_norm(module: nn.Module) -> bool:
    """Return True if a batch normalization in `module` is in training mode, i.e. computes statistics of the batch."""
    return any(isinstance(each, BATCH_NORMS) and each.training for each in module.modules())


def _drop_and_act(norm: nn.Module, normalized: Tensor) -> Tensor:
    """Apply the dropout and the activation of timm's BatchNormAct2d, if the module has them."""
    for name in ("drop", "act"):
        if hasattr(norm, name):
            normalized = getattr(norm, name)(normalized)
    return normalized


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm and timm's activation, for GPUs. Every rank needs at least one image of each batch."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalize [N, C, ...]."""
        return _drop_and_act(self, super().forward(images))


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1) over the images of all ranks.

    The forward and the backward pass have one reduction each. Idle ranks join these with an image that counts nothing.
    It derives from BatchNorm2d so that it is found as a batch normalization (DDP refuses SyncBatchNorm on a CPU), but
    takes inputs of any number of dimensions.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalize [N, C, ...]; raise ValueError in training if the global batch has one value per channel."""
        if self.training:
            return _drop_and_act(self, self._train_forward(images))
        statistics_of_batch = self.running_mean is None
        return _drop_and_act(
            self,
            functional.batch_norm(
                images, self.running_mean, self.running_var, self.weight, self.bias, statistics_of_batch, 0.0, self.eps
            ),
        )

    def _train_forward(self, images: Tensor) -> Tensor:
        statistics = global_statistics(images)
        if self.track_running_stats:
            self._update_running_statistics(statistics)
        normalized: Tensor = _Normalize.apply(images, self.weight, self.bias, statistics, self.eps)
        return normalized

    @torch.no_grad()
    def _update_running_statistics(self, statistics: "Statistics") -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = statistics.variance * (statistics.count / (statistics.count - 1))
        for running, new in ((self.running_mean, statistics.mean), (self.running_var, unbiased)):
            running.copy_(share * new + (1 - share) * running)


@dataclass(frozen=True)
class Statistics:
    """Mean [C] and biased variance [C] of the global batch, over `count` values each; the same bits on all ranks."""

    mean: Tensor
    variance: Tensor
    count: int


@torch.no_grad()
def global_statistics(images: Tensor) -> Statistics:
    """Return the statistics of the images of all ranks, computed in at least float32 under autocast too.

    Each rank computes its own in two passes. They are combined in float64 by Chan et al. 1983 (The American
    Statistician 37:3), eq. 2.1: var = sum_r n_r (var_r + (mean_r - mean)^2) / n.
    """
    wide = _at_least_float32(images)
    own = torch.zeros(1, 2 * wide.shape[1] + 1, dtype=torch.float64)
    if not distributed.is_idle():
        own[0] = torch.cat([*torch.batch_norm_update_stats(wide, None, None, 0.0), torch.tensor([_count(wide)])])
    gathered_RC = distributed.gather_rows(own, distributed.size())
    mean_RC, variance_RC = gathered_RC[:, :-1].chunk(2, dim=1)
    count_R1 = gathered_RC[:, -1:]
    count = int(count_R1.sum())
    if count < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(images.shape)}")
    mean = (count_R1 * mean_RC).sum(0) / count
    variance = (count_R1 * (variance_RC + (mean_RC - mean) ** 2)).sum(0) / count
    return Statistics(mean.to(wide.dtype), variance.to(wide.dtype), count)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the gradient through mean and variance of all ranks.

    Each rank differentiates its share of the global loss, as in `distributed.gather_batch`. So the gradients of inputs
    are complete here, and those of weight and bias after DDP's average.
    """

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Statistics, eps: float
    ) -> Tensor:
        context.save_for_backward(images, weight, statistics.mean, (statistics.variance + eps).rsqrt())
        context.count, context.idle, context.has_bias = statistics.count, distributed.is_idle(), bias is not None
        return functional.batch_norm(images, statistics.mean, statistics.variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight, mean, inverse_deviation = context.saved_tensors
        wide = gradient.to(mean.dtype)
        centred = images.to(mean.dtype) - _per_channel(mean, images)
        over_images = [axis for axis in range(images.ndim) if axis != 1]
        sums_2C = torch.stack([wide.sum(over_images), (wide * centred).sum(over_images)])
        of_weight = (sums_2C[1] * inverse_deviation).to(weight.dtype) if context.needs_input_grad[1] else None
        of_bias = sums_2C[0].to(mean.dtype) if context.has_bias and context.needs_input_grad[2] else None
        if not context.needs_input_grad[0]:
            return None, of_weight, of_bias, None, None
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        of_images = wide * _per_channel(scale, images)
        # An idle rank joins the reduction, or the others would wait for ever. Its image is in no statistics.
        all_2C = (
            distributed.sum_over_ranks(torch.zeros_like(sums_2C) if context.idle else sums_2C.clone()) / context.count
        )
        if not context.idle:
            of_images -= _per_channel(scale * all_2C[0], images)
            of_images.addcmul_(centred, _per_channel(scale * inverse_deviation**2 * all_2C[1], images), value=-1.0)
        return of_images.to(images.dtype), of_weight, of_bias, None, None


def _per_channel(values_C: Tensor, images: Tensor) -> Tensor:
    """Reshape [C] so that it broadcasts over images [N, C, ...]."""
    return values_C.view(1, -1, *[1] * (images.ndim - 2))


def _count(images: Tensor) -> int:
    return images.numel() // images.shape[1]


def _at_least_float32(images: Tensor) -> Tensor:
    return images if images.dtype == torch.float64 else images.float()
