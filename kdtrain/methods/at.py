"""Paying More Attention to Attention (Zagoruyko & Komodakis 2017, arXiv:1612.03928), equation 2, activation-based.

N images, C channels, H x W positions, P = H W.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdtrain.errors import UserError
from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    Stages,
    TeacherReading,
    WeightedCriterion,
    at_least_float32,
    read_teacher,
    require_equal_map_sizes,
    require_equal_shapes,
)
from kdtrain.methods.loss_weights import WithCrossEntropyRatioIsWeight


def at_loss(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    """Return (q(F_s) - q(F_t))^2, mean over N and H W, where q(F) = vec(mean_C F^2) / ||vec(mean_C F^2)||_2.

    The mean over positions is that of the authors' code; the squared norm would be H W times larger. At least float32.

    Args:
        student_NCHW: maps F_s [N, C_s, H, W].
        teacher_NCHW: maps F_t [N, C_t, H, W]; they get no gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: if N, H or W differ.

    Source:
        Zagoruyko & Komodakis 2017, arXiv:1612.03928, equation 2.
    """
    require_equal_shapes(student_NCHW[:, 0], teacher_NCHW[:, 0])
    return _attention_loss(student_NCHW, attention_map(teacher_NCHW.detach()))


def _attention_loss(student_NCHW: Tensor, teacher_NP: Tensor) -> Tensor:
    return functional.mse_loss(attention_map(student_NCHW), teacher_NP)


def attention_map(features_NCHW: Tensor) -> Tensor:
    """Return q(F) [N, H W] of maps [N, C, H, W]: the normalized energy at each position."""
    return functional.normalize(at_least_float32(features_NCHW).square().mean(dim=1).flatten(1), dim=1)


class At(MethodConfig):
    """Attention transfer: the student's maps have their energy at the same positions as the teacher's."""

    name: Literal["at"]
    balance: WithCrossEntropyRatioIsWeight
    stages: Stages = Field(("16", "32"), description="whose maps are compared; their losses are summed")

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """The stages of the config."""
        return self.stages

    @property
    def teacher_readings(self) -> tuple[TeacherReading, ...]:
        """The teacher's attention maps [N, H W]."""
        return tuple(TeacherReading(stage, "attention", attention_map) for stage in self.stages)

    def criterion(self, context: MethodContext) -> "AtCriterion":
        """Build the criterion.

        Raises:
            UserError: if the maps of the networks differ in size, or have a single position.
        """
        require_equal_map_sizes("at", "stages", self.stages, context)
        single = [stage for stage in self.stages if context.student_shapes[stage][1:] == (1, 1)]
        if single:
            raise UserError(
                f"recipe.method.stages: at has nothing to compare at stage '{single[0]}', whose map is 1 x 1 here: its "
                "normalised attention is always 1; write earlier stages or a higher data.resolution"
            )
        return AtCriterion(self, context)


class AtCriterion(WeightedCriterion):
    """Terms: cross_entropy, at."""

    def __init__(self, config: At, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.teacher_readings = config.teacher_readings

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return at, summed over the stages."""
        values = [
            _attention_loss(student.features[reading.stage], read_teacher(reading, teacher))
            for reading in self.teacher_readings
        ]
        return {"at": LossTerm(torch.stack(values).sum(), self.weight)}
