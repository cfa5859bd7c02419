"""Knowledge Distillation from a Stronger Teacher (Huang et al. 2022, arXiv:2205.10536), equations 6-10."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import NonNegative, Positive
from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, at_least_float32
from kdtrain.methods.batch_relations import gathered, refuse_single_image
from kdtrain.methods.loss_weights import LossWeights


def dist_loss(student_NK: Tensor, teacher_NK: Tensor, *, beta: float, gamma: float, temperature: float) -> Tensor:
    """T^2 (beta inter + gamma intra) on softmax(./T), in float32, T^2 as in the authors' code.

    inter: 1 - Pearson correlation of an image's probabilities over the classes, mean over N. intra: 1 - that of a
    class's probabilities over the images, mean over K. With K = 2, inter is 0 or 2 and has no gradient.
    """
    student = functional.softmax(at_least_float32(student_NK) / temperature, dim=1)
    teacher = functional.softmax(at_least_float32(teacher_NK).detach() / temperature, dim=1)
    inter, intra = _one_less_pearson(student, teacher), _one_less_pearson(student.T, teacher.T)
    return temperature**2 * (beta * inter + gamma * intra)


def _one_less_pearson(a_RL: Tensor, b_RL: Tensor) -> Tensor:
    """1 - correlation of rows [R, L], mean over R. A constant row has correlation 0.

    The denominator is at least 1e-8; the authors add 1e-8, with which equal rows would not give 0. Near a constant
    row the gradient is large with either: a head that starts at zero wants an optimizer that is not moved by scale.
    """
    a, b = a_RL - a_RL.mean(dim=1, keepdim=True), b_RL - b_RL.mean(dim=1, keepdim=True)
    norms_R = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    correlation_R: Tensor = (a * b).sum(dim=1) / norms_R.clamp(min=1e-8)
    return (1 - correlation_R).mean()


class Dist(MethodConfig):
    """The teacher's preferences, not its probabilities: correlation within an image and within a class."""

    name: Literal["dist"]
    balance: LossWeights
    beta: NonNegative = Field(1.0, description="weight of inter, between the classes of an image")
    gamma: NonNegative = Field(1.0, description="weight of intra, between the images of the batch for a class")
    temperature: Positive = Field(4.0, description="T, divides the logits of both networks")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if self.beta == 0 and self.gamma == 0:
            raise ValueError("beta and gamma are both 0: nothing would be distilled")
        return self

    def criterion(self, setting: MethodContext) -> "DistCriterion":
        if self.gamma:
            refuse_single_image("dist with gamma above 0", setting)
        return DistCriterion(self, setting)


class DistCriterion(WeightedCriterion):
    """Terms: cross_entropy, dist (of the global batch)."""

    def __init__(self, config: Dist, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.beta, self.gamma, self.temperature = config.beta, config.gamma, config.temperature

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        both = gathered(student.logits, teacher.logits, batch)
        value = dist_loss(*both, beta=self.beta, gamma=self.gamma, temperature=self.temperature)
        return {"dist": LossTerm(value, self.weight)}
