"""Matching logits: Ba & Caruana 2014 (arXiv:1312.6184), equation 1; the loss of setup 2."""

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, at_least_float32
from kdtrain.methods.loss_weights import LossWeights


def logit_mse_loss(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """(s - t)^2 of raw logits, mean over N and K, in float32. Ba & Caruana sum over K and halve: K/2 times larger."""
    return functional.mse_loss(at_least_float32(student_NK), at_least_float32(teacher_NK).detach())


class LogitMse(MethodConfig):
    """The student's logits are drawn to the teacher's, their scale and offset included."""

    of_each_image: ClassVar[bool] = True

    name: Literal["logit_mse"]
    balance: LossWeights

    def criterion(self, setting: MethodContext) -> "LogitMseCriterion":
        return LogitMseCriterion(self.balance, setting)


class LogitMseCriterion(WeightedCriterion):
    """Terms: cross_entropy, logit_mse."""

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        return {"logit_mse": LossTerm(logit_mse_loss(student.logits, teacher.logits), self.weight)}
