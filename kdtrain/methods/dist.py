"""Knowledge Distillation from a Stronger Teacher (Huang et al. 2022, arXiv:2205.10536), equations 6-10.

N images of the global batch, K classes.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import NonNegative, Positive
from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    WeightedCriterion,
    at_least_float32,
    gather_global_batch,
    require_equal_shapes,
    require_two_images,
)
from kdtrain.methods.loss_weights import LossWeights


def dist_loss(
    student_NK: Tensor, teacher_NK: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0
) -> Tensor:
    """Return T^2 (beta inter + gamma intra) of the probabilities softmax(./T), in at least float32.

    inter is 1 - Pearson's correlation of an image's probabilities over the classes, mean over N. intra is 1 - the
    correlation of a class's probabilities over the images, mean over K. T^2 is that of the authors' code. With K = 2,
    inter is 0 or 2 for an image and has no gradient.

    Args:
        student_NK: logits [N, K].
        teacher_NK: logits [N, K]; they get no gradient.
        beta: weight of inter.
        gamma: weight of intra.
        temperature: T > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Huang et al. 2022, arXiv:2205.10536, equations 6-10.
    """
    require_equal_shapes(student_NK, teacher_NK)
    student = functional.softmax(at_least_float32(student_NK) / temperature, dim=1)
    teacher = functional.softmax(at_least_float32(teacher_NK).detach() / temperature, dim=1)
    inter, intra = _one_minus_pearson(student, teacher), _one_minus_pearson(student.T, teacher.T)
    return temperature**2 * (beta * inter + gamma * intra)


def _one_minus_pearson(a_RL: Tensor, b_RL: Tensor) -> Tensor:
    """Return 1 - correlation of rows [R, L], mean over R; a constant row has correlation 0.

    The denominator is at least 1e-8; the authors add 1e-8 instead, so that equal rows do not give 0. The gradient is
    large near a constant row in both forms: a head that starts at zero needs an optimizer that normalizes gradients.
    """
    a, b = a_RL - a_RL.mean(dim=1, keepdim=True), b_RL - b_RL.mean(dim=1, keepdim=True)
    norms_R = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    correlation_R: Tensor = (a * b).sum(dim=1) / norms_R.clamp(min=1e-8)
    return (1 - correlation_R).mean()


class Dist(MethodConfig):
    """The student's probabilities correlate with the teacher's, within an image and within a class."""

    name: Literal["dist"]
    balance: LossWeights
    beta: NonNegative = Field(1.0, description="weight of inter, between the classes of an image")
    gamma: NonNegative = Field(1.0, description="weight of intra, between the images of the batch for a class")
    temperature: Positive = Field(4.0, description="T, divides the logits of both networks")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.beta == 0 and self.gamma == 0:
            raise ValueError("beta and gamma are both 0: nothing would be distilled")
        return self

    def criterion(self, context: MethodContext) -> "DistCriterion":
        """Build the criterion; intra needs two images in a batch."""
        if self.gamma:
            require_two_images("dist with gamma above 0", context)
        return DistCriterion(self, context)


class DistCriterion(WeightedCriterion):
    """Terms: cross_entropy, dist (of the global batch)."""

    def __init__(self, config: Dist, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.beta, self.gamma, self.temperature = config.beta, config.gamma, config.temperature

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return dist."""
        value = dist_loss(
            gather_global_batch(student.logits, batch), gather_global_batch(teacher.logits.detach(), batch),
            beta=self.beta, gamma=self.gamma, temperature=self.temperature,
        )  # fmt: skip
        return {"dist": LossTerm(value, self.weight)}
