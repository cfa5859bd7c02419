"""Decoupled Knowledge Distillation (Zhao et al. 2022, arXiv:2203.08679), equation 7. N images, K classes."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import NonNegative, NonNegativeInt, Positive
from kdtrain.errors import UserError
from kdtrain.methods.base import (
    UNLABELLED,
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    WeightedCriterion,
    at_least_float32,
    require_equal_shapes,
    require_three_classes,
)
from kdtrain.methods.logit_standardization import standardize_logits
from kdtrain.methods.loss_weights import LossWeights


def dkd_loss(
    student_NK: Tensor,
    teacher_NK: Tensor,
    target_N: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD), mean over N, in nats and at least float32.

    TCKD is KL(teacher || student) of the probabilities of (target, all other classes), NCKD that of the distributions
    over the other classes. With alpha = 1 and beta = 1 - p_t(target) it would be `kd_loss`. The target is left out by
    its index, whereas the authors' code subtracts 1000 from its logit.

    Args:
        student_NK: logits [N, K].
        teacher_NK: logits [N, K]; they get no gradient.
        target_N: classes [N].
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes of the logits differ.

    Source:
        Zhao et al. 2022, arXiv:2203.08679, equation 7.
    """
    require_equal_shapes(student_NK, teacher_NK)
    student = _target_and_others(student_NK, target_N, temperature)
    teacher = _target_and_others(teacher_NK.detach(), target_N, temperature)
    tckd, nckd = (
        functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        for ours, theirs in zip(student, teacher, strict=True)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


def _target_and_others(logits_NK: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (target, all others) [N, 2], and of each other class among the others [N, K-1]."""
    log_p = functional.log_softmax(at_least_float32(logits_NK) / temperature, dim=1)
    others = torch.arange(log_p.shape[1] - 1, device=log_p.device).expand(len(log_p), -1)
    others = others + (others >= target_N[:, None])  # all classes except the target
    log_others = log_p.gather(1, others)
    binary = torch.cat([log_p.gather(1, target_N[:, None]), log_others.logsumexp(dim=1, keepdim=True)], dim=1)
    return binary, functional.log_softmax(log_others, dim=1)


class Dkd(MethodConfig):
    """kd in two parts with separate weights: the target class against the rest, and the other classes."""

    needs_hard_labels: ClassVar[bool] = True

    per_image_loss: ClassVar[bool] = True

    name: Literal["dkd"]
    balance: LossWeights
    alpha: NonNegative = Field(1.0, description="weight of TCKD, the target class against all others")
    beta: NonNegative = Field(8.0, description="weight of NCKD, the other classes among themselves")
    temperature: Positive = Field(4.0, description="T, divides the logits of both networks")
    warmup_epochs: NonNegativeInt = Field(
        20, description="the weight grows linearly to its full size in this epoch; 0: full from the start"
    )
    standardise: bool = Field(
        False, description="each image's logits to mean 0 and deviation 1 before T divides them (Sun et al. 2024)"
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: nothing would be distilled")
        return self

    def criterion(self, context: MethodContext) -> "DkdCriterion":
        """Build the criterion; it needs three classes."""
        require_three_classes("the non-target term of dkd", context)
        return DkdCriterion(self, context)


class DkdCriterion(WeightedCriterion):
    """Terms: cross_entropy, dkd, whose weight is the balance's times min((epoch + 1) / warmup_epochs, 1).

    The target of an unlabelled image is the teacher's most probable class. The paper has labels only: this is our
    choice.
    """

    def __init__(self, config: Dkd, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.alpha, self.beta, self.temperature = config.alpha, config.beta, config.temperature
        self.warmup_epochs, self.standardise = config.warmup_epochs, config.standardise

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return dkd.

        Raises:
            UserError: if the targets are mixed.
        """
        if batch.target.ndim != 1:
            shape = " x ".join(map(str, batch.target.shape))
            raise UserError(
                f"recipe.method: dkd needs one class per image, got mixed targets {shape}; remove the mixup"
            )
        target_N = batch.target.where(batch.target != UNLABELLED, teacher.logits.argmax(1))
        student_NK, teacher_NK = student.logits, teacher.logits
        if self.standardise:
            student_NK, teacher_NK = standardize_logits(student_NK), standardize_logits(teacher_NK)
        value = dkd_loss(
            student_NK, teacher_NK, target_N, alpha=self.alpha, beta=self.beta, temperature=self.temperature
        )
        warmup = min((batch.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return {"dkd": LossTerm(value, self.weight * warmup)}
