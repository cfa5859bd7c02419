"""Masked Generative Distillation (Yang et al. 2022, arXiv:2205.01529), equations 2-4, for classification.

C_s and C_t channels of student and teacher; N images.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, at_least_float32
from kdtrain.methods.loss_weights import Labelled
from kdtrain.methods.stage_fields import Stage, maps_of_one_size
from kdtrain.runtime.rng import generator


def mgd_loss(generated_NCHW: Tensor, teacher_NCHW: Tensor, *, alpha: float) -> Tensor:
    """alpha * sum over C, H, W of (G - F_t)^2, mean over N, in float32.

    The sum makes alpha mean another thing for each size of map: alpha C H W is the weight of the elementwise mean.
    """
    generated, teacher = at_least_float32(generated_NCHW), at_least_float32(teacher_NCHW).detach()
    return alpha * functional.mse_loss(generated, teacher, reduction="sum") / len(generated)


def channel_mask(batch: Batch, channels: int, mask_ratio: float) -> Tensor:
    """Zeros with probability mask_ratio, else ones: [N, C, 1, 1] on the CPU, drawn for each image by its own name."""
    draws = [
        torch.rand(channels, generator=generator(batch.seed, "mask", batch.step, index))
        for index in batch.indices.tolist()
    ]
    return (torch.stack(draws) >= mask_ratio).float()[:, :, None, None]


class Mgd(MethodConfig):
    """The student's map, some channels hidden, must still generate the teacher's.

    The generator is trained as the student is. (In the CUB document's code its parameters join the optimizer late,
    with a learning rate of their own; that is not offered.)
    """

    name: Literal["mgd"]
    balance: Labelled
    stage: Stage = Field("32", description="whose maps are compared")
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.15, description="lambda, the probability that a channel of the aligned student map is hidden"
    )
    alpha: Positive = Field(7.0e-5, description="scale of the squared error summed over a map")

    @property
    def needed_stages(self) -> tuple[str, ...]:
        return (self.stage,)

    def criterion(self, setting: MethodContext) -> "MgdCriterion":
        maps_of_one_size("mgd", "stage", (self.stage,), setting)
        return MgdCriterion(self, setting)


class MgdCriterion(WeightedCriterion):
    """Terms: cross_entropy, mgd, and mgd_elementwise (shown only: the mean squared error of one element).

    In evaluation mode nothing is masked.
    """

    def __init__(self, config: Mgd, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.stage, self.mask_ratio, self.alpha = config.stage, config.mask_ratio, config.alpha
        own, wanted = setting.student_shapes[self.stage][0], setting.teacher_shapes[self.stage][0]
        self.align = nn.Conv2d(own, wanted, 1) if own != wanted else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1)
        )
        if self.weight == 0:  # nothing would reach these parameters, which DDP does not forgive
            self.requires_grad_(False)

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        aligned, target = self.align(student.features[self.stage]), teacher.features[self.stage]
        if self.training and self.mask_ratio:
            mask = channel_mask(batch, aligned.shape[1], self.mask_ratio)
            aligned = aligned * mask.to(aligned, non_blocking=True)
        if aligned.device.type == "cpu":  # else it would put the generator's weights in another order each time
            aligned = aligned.contiguous()
        value = mgd_loss(self.generation(aligned), target, alpha=self.alpha)
        elementwise = value.detach() / (self.alpha * target[0].numel())
        return {"mgd": LossTerm(value, self.weight), "mgd_elementwise": LossTerm(elementwise, 0.0)}
