"""Masked Generative Distillation (Yang et al. 2022, arXiv:2205.01529), equations 2-4, for classification.

N images, C channels of the teacher's map, H x W positions.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    Stage,
    WeightedCriterion,
    at_least_float32,
    require_equal_map_sizes,
    require_equal_shapes,
)
from kdtrain.methods.loss_weights import WithCrossEntropy
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import generator


def mgd_loss(generated_NCHW: Tensor, teacher_NCHW: Tensor, *, alpha: float = 7e-5) -> Tensor:
    """Return alpha * sum over C, H, W of (G - F_t)^2, mean over N, in at least float32.

    Because of the sum, the effect of alpha depends on the size of the map: the weight of the mean squared error of one
    element is alpha C H W.

    Args:
        generated_NCHW: maps G [N, C, H, W] that the generator makes of the student's masked maps.
        teacher_NCHW: maps F_t [N, C, H, W]; they get no gradient.
        alpha: scale.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Yang et al. 2022, arXiv:2205.01529, equation 4.
    """
    require_equal_shapes(generated_NCHW, teacher_NCHW)
    generated, teacher = at_least_float32(generated_NCHW), at_least_float32(teacher_NCHW).detach()
    return alpha * functional.mse_loss(generated, teacher, reduction="sum") / len(generated)


def channel_mask(batch: Batch, channels: int, mask_ratio: float) -> Tensor:
    """Return zeros with probability mask_ratio, else ones, [N, C, 1, 1] on the CPU.

    The random numbers of an image depend on the seed, the step and its index only.
    """
    draws = [
        torch.rand(channels, generator=generator(batch.seed, "mask", batch.step, index))
        for index in batch.indices.tolist()
    ]
    return (torch.stack(draws) >= mask_ratio).float()[:, :, None, None]


class Mgd(MethodConfig):
    """A generator makes the teacher's map from the student's map, of which some channels are masked.

    The generator is trained like the student. In the CUB reference implementation its parameters join the optimizer
    late, with a learning rate of their own; this is not offered.
    """

    name: Literal["mgd"]
    balance: WithCrossEntropy
    stage: Stage = Field("32", description="whose maps are compared")
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="lambda, the probability that a channel of the aligned student map is masked"
    )
    alpha: Positive = Field(7.0e-5, description="scale of the squared error summed over a map")

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """The stage of the config."""
        return (self.stage,)

    def criterion(self, context: MethodContext) -> "MgdCriterion":
        """Build the criterion and its generator.

        Raises:
            UserError: if the maps of the networks differ in size.
        """
        require_equal_map_sizes("mgd", "stage", (self.stage,), context)
        return MgdCriterion(self, context)


class MgdCriterion(WeightedCriterion):
    """Terms: cross_entropy, mgd, and mgd_elementwise, which is only logged: the mean squared error of one element.

    Nothing is masked in evaluation mode.
    """

    def __init__(self, config: Mgd, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.stage, self.mask_ratio, self.alpha = config.stage, config.mask_ratio, config.alpha
        own, wanted = context.student_shapes[self.stage][0], context.teacher_shapes[self.stage][0]
        self.align = nn.Conv2d(own, wanted, 1) if own != wanted else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1)
        )
        if self.weight == 0:  # DDP fails if a trained parameter gets no gradient
            self.requires_grad_(False)

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return mgd and mgd_elementwise."""
        aligned, target = self.align(student.features[self.stage]), teacher.features[self.stage]
        if self.training and self.mask_ratio:
            mask = channel_mask(batch, aligned.shape[1], self.mask_ratio)
            aligned = aligned * to_device(mask.to(aligned.dtype), aligned.device)
        if aligned.device.type == "cpu":  # for channels_last maps it would reorder the generator's weights each time
            aligned = aligned.contiguous()
        value = mgd_loss(self.generation(aligned), target, alpha=self.alpha)
        elementwise = value.detach() / (self.alpha * target[0].numel())
        return {"mgd": LossTerm(value, self.weight), "mgd_elementwise": LossTerm(elementwise, 0.0)}
