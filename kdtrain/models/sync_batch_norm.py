"""Batch normalisation over the global batch of several workers: the network that one worker would train.

N images of this rank, C channels, R ranks; count: of the values of a channel in the global batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from kdtrain.errors import UserError
from kdtrain.runtime import distributed

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def over_global_batch(module: nn.Module, device: torch.device) -> None:
    """From now on every batch normalisation in `module` takes, in training, mean and variance of the images of all
    ranks: on a GPU as torch's SyncBatchNorm, on the CPU, where that one raises, as `ReducedBatchNorm`.

    Names and values of parameters and buffers stay. One in evaluation mode (kept statistics) is left by both as it is.
    """
    for each in module.modules():
        if isinstance(each, PLAIN):
            if not is_known(each):
                raise UserError(
                    f"recipe.batch_norm: {type(each).__name__} has no form over several workers; write per_worker"
                )
            each.__class__ = ReducedBatchNorm if device.type == "cpu" else SyncBatchNorm  # type: ignore[assignment]


def is_known(norm: nn.Module) -> bool:
    """Whether it only normalises, or is timm's BatchNormAct2d, with a dropout and an activation of its own."""
    return type(norm) in (*PLAIN, SyncBatchNorm, ReducedBatchNorm) or (hasattr(norm, "drop") and hasattr(norm, "act"))


def trains_batch_norm(module: nn.Module) -> bool:
    """Whether a batch normalisation in `module` takes its statistics from the images; in training mode."""
    return any(isinstance(each, _BatchNorm) and each.training for each in module.modules())


class _WithActivation(nn.Module):
    """What timm's BatchNormAct2d does after normalising; a plain one has neither and does nothing."""

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = super().forward(images)
        for name in ("drop", "act"):
            after = getattr(self, name, None)
            normalised = normalised if after is None else after(normalised)
        return normalised


class SyncBatchNorm(_WithActivation, nn.SyncBatchNorm):
    """torch's own, for GPUs. It knows of no idle rank: each needs an image of every batch."""

    process_group = None  # all ranks


class _Reduced(_BatchNorm):
    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        statistics = global_statistics(images)
        if self.track_running_stats:
            self._track(statistics)
        normalised: Tensor = _Normalise.apply(images, self.weight, self.bias, statistics, self.eps)
        return normalised

    @torch.no_grad()
    def _track(self, statistics: "Statistics") -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = statistics.variance * (statistics.count / (statistics.count - 1))
        for kept, new in ((self.running_mean, statistics.mean), (self.running_var, unbiased)):
            kept.copy_(share * new + (1 - share) * kept)

    def _check_input_dim(self, images: Tensor) -> None:
        """Any: which it was has gone with the class."""


class ReducedBatchNorm(_WithActivation, _Reduced):
    """Ioffe and Szegedy 2015 (arXiv:1502.03167), algorithm 1, over the images of all ranks but the idle ones: one
    reduction in the forward and one in the backward."""


@dataclass(frozen=True)
class Statistics:
    """Of the global batch, the same bits on all ranks: mean [C] and biased variance [C], over `count` values each."""

    mean: Tensor
    variance: Tensor
    count: int


@torch.no_grad()
def global_statistics(images: Tensor) -> Statistics:
    """Each rank's own in two passes, put together in float64 by Chan et al. 1983 (The American Statistician 37:3),
    eq. 2.1: var = sum_r n_r (var_r + (mean_r - mean)^2) / n. In float32 at least, under autocast too."""
    wide = _at_least_float32(images)
    own = torch.zeros(1, 2 * wide.shape[1] + 1, dtype=torch.float64)
    if not distributed.is_idle():
        own[0] = torch.cat([*torch.batch_norm_update_stats(wide, None, None, 0.0), torch.tensor([_count(wide)])])
    said_RC = distributed.gather_rows(own, distributed.size())
    mean_RC, variance_RC = said_RC[:, :-1].chunk(2, dim=1)
    count_R1 = said_RC[:, -1:]
    count = int(count_R1.sum())
    if count < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(images.shape)}")
    mean = (count_R1 * mean_RC).sum(0) / count
    variance = (count_R1 * (variance_RC + (mean_RC - mean) ** 2)).sum(0) / count
    return Statistics(mean.to(wide.dtype), variance.to(wide.dtype), count)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the gradient through mean and variance of all ranks.

    As in `distributed.gather_batch` each rank differentiates its share of the global loss, so that input gradients are
    whole here, and those of weight and bias after DDP's average.
    """

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, of: Statistics, eps: float
    ) -> Tensor:
        context.save_for_backward(images, weight, of.mean, (of.variance + eps).rsqrt())
        context.count, context.idle, context.has_bias = of.count, distributed.is_idle(), bias is not None
        return functional.batch_norm(images, of.mean, of.variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight, mean, inverse_deviation = context.saved_tensors
        wide = gradient.to(mean.dtype)
        centred = images.to(mean.dtype) - _of_channels(mean, images)
        over_images = [axis for axis in range(images.ndim) if axis != 1]
        sums_2C = torch.stack([wide.sum(over_images), (wide * centred).sum(over_images)])
        of_weight = (sums_2C[1] * inverse_deviation).to(weight.dtype) if context.needs_input_grad[1] else None
        of_bias = sums_2C[0].to(mean.dtype) if context.has_bias and context.needs_input_grad[2] else None
        if not context.needs_input_grad[0]:
            return None, of_weight, of_bias, None, None
        scale = inverse_deviation if weight is None else inverse_deviation * weight
        of_images = wide * _of_channels(scale, images)
        # an idle rank joins, or the others would wait for ever; its image is in no statistics, so nothing comes back
        all_2C = (
            distributed.sum_over_ranks(torch.zeros_like(sums_2C) if context.idle else sums_2C.clone()) / context.count
        )
        if not context.idle:
            of_images -= _of_channels(scale * all_2C[0], images)
            of_images.addcmul_(centred, _of_channels(scale * inverse_deviation**2 * all_2C[1], images), value=-1.0)
        return of_images.to(images.dtype), of_weight, of_bias, None, None


def _of_channels(values_C: Tensor, images: Tensor) -> Tensor:
    """[C] as it broadcasts over images [N, C, ...]."""
    return values_C.view(1, -1, *[1] * (images.ndim - 2))


def _count(images: Tensor) -> int:
    return images.numel() // images.shape[1]


def _at_least_float32(images: Tensor) -> Tensor:
    return images if images.dtype == torch.float64 else images.float()
