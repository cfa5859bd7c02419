"""Matching logits (Ba & Caruana 2014, arXiv:1312.6184), equation 1; the loss of setup 2. N images, K classes."""

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    WeightedCriterion,
    at_least_float32,
    require_equal_shapes,
)
from kdtrain.methods.loss_weights import LossWeights


def logit_mse_loss(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Return (s - t)^2, mean over N and K, in at least float32.

    The paper sums over K and halves, which is K/2 times larger.

    Args:
        student_NK: logits s [N, K].
        teacher_NK: logits t [N, K]; they get no gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Ba & Caruana 2014, arXiv:1312.6184, equation 1.
    """
    require_equal_shapes(student_NK, teacher_NK)
    return functional.mse_loss(at_least_float32(student_NK), at_least_float32(teacher_NK).detach())


class LogitMse(MethodConfig):
    """The student's logits match the teacher's, including their scale and offset."""

    per_image_loss: ClassVar[bool] = True

    name: Literal["logit_mse"]
    balance: LossWeights

    def criterion(self, context: MethodContext) -> "LogitMseCriterion":
        """Build the criterion."""
        return LogitMseCriterion(self.balance, context)


class LogitMseCriterion(WeightedCriterion):
    """Terms: cross_entropy, logit_mse."""

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return logit_mse."""
        return {"logit_mse": LossTerm(logit_mse_loss(student.logits, teacher.logits), self.weight)}
