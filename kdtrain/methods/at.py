"""Paying More Attention to Attention (Zagoruyko & Komodakis 2017, arXiv:1612.03928), equation 2, activation-based."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdtrain.errors import UserError
from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    TeacherReading,
    at_least_float32,
    known_or_made,
)
from kdtrain.methods.loss_weights import LabelledRatioIsWeight
from kdtrain.methods.stage_fields import Stages, maps_of_one_size


def at_loss(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    """(q(F_s) - q(F_t))^2, q(F) = vec(mean_C F^2) / ||.||_2, mean over N and the HW positions, in float32.

    The mean over positions is the authors' code; the norm of equation 2 would be some HW times larger. C may differ.
    """
    return attention_loss(student_NCHW, attention(teacher_NCHW.detach()))


def attention_loss(student_NCHW: Tensor, teacher_NP: Tensor) -> Tensor:
    """The same where the teacher's attention q [N, HW] is known."""
    return functional.mse_loss(attention(student_NCHW), teacher_NP)


def attention(features_NCHW: Tensor) -> Tensor:
    """q(F) [N, HW]: where the maps have their energy."""
    return functional.normalize(at_least_float32(features_NCHW).square().mean(dim=1).flatten(1), dim=1)


class At(MethodConfig):
    """Where the networks look: the energy of their feature maps over the image."""

    name: Literal["at"]
    balance: LabelledRatioIsWeight
    stages: Stages = Field(("16", "32"), description="whose maps are compared; their losses are summed")

    @property
    def needed_stages(self) -> tuple[str, ...]:
        return self.stages

    @property
    def readings(self) -> tuple[TeacherReading, ...]:
        return tuple(TeacherReading(stage, "attention", attention) for stage in self.stages)

    def criterion(self, setting: MethodContext) -> "AtCriterion":
        maps_of_one_size("at", "stages", self.stages, setting)
        points = [stage for stage in self.stages if setting.student_shapes[stage][1:] == (1, 1)]
        if points:
            raise UserError(
                f"recipe.method.stages: at has nothing to compare at stage '{points[0]}', whose map is 1 x 1 here: its "
                "normalised attention is always 1; write earlier stages or a higher data.resolution"
            )
        return AtCriterion(self, setting)


class AtCriterion(WeightedCriterion):
    """Terms: cross_entropy, at."""

    def __init__(self, config: At, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.readings = config.readings

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        values = [
            attention_loss(student.features[reading.stage], known_or_made(reading, teacher))
            for reading in self.readings
        ]
        return {"at": LossTerm(torch.stack(values).sum(), self.weight)}
