"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv:1503.02531), section 2.

Function matching (Beyer et al. 2021, arXiv:2106.05237) is kd with `balance: {alpha: 1}` and mixed images.
N images, K classes.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.base import (
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


def kd_loss(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(softmax(t/T) || softmax(s/T)), mean over N, in nats and at least float32.

    With T^2 the scale of the gradient hardly depends on T.

    Args:
        student_NK: logits s [N, K].
        teacher_NK: logits t [N, K]; they get no gradient.
        temperature: T > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    return temperature**2 * _kl(teacher_NK.detach(), student_NK, temperature)


def kd_loss_published_mnist(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """Return KL(softmax(s/T) || softmax(t/T)), mean over N: the arguments are swapped and T^2 is missing.

    The MNIST reference implementation computes F.kl_div(log_softmax(t/T), softmax(s/T), 'batchmean'). This variant
    exists to repeat its results. Arguments as for `kd_loss`.
    """
    return _kl(student_NK, teacher_NK.detach(), temperature)


def kd_loss_published_cifar10(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(t/T) || softmax(s/T)), mean over N and K: K times smaller than in the paper.

    The CIFAR-10 reference implementation computes nn.KLDivLoss()(log_softmax(s/T), softmax(t/T)), whose default
    reduction divides by N K. Arguments as for `kd_loss`.
    """
    return kd_loss(student_NK, teacher_NK, temperature=temperature) / student_NK.shape[1]


def kd_loss_published_flowers(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """Return KL(softmax(t/T) || softmax(s/T)), mean over N, without T^2: T^2 times smaller than in the paper.

    The Flowers reference implementation computes keras.losses.KLDivergence()(softmax(t/T), softmax(s/T)). Arguments as
    for `kd_loss`.
    """
    return _kl(teacher_NK.detach(), student_NK, temperature)


def _kl(p_NK: Tensor, q_NK: Tensor, temperature: float) -> Tensor:
    require_equal_shapes(p_NK, q_NK)
    log_p = functional.log_softmax(at_least_float32(p_NK) / temperature, dim=1)
    log_q = functional.log_softmax(at_least_float32(q_NK) / temperature, dim=1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


CONVENTIONS = {
    "corrected": kd_loss,
    "published_mnist": kd_loss_published_mnist,
    "published_cifar10": kd_loss_published_cifar10,
    "published_flowers": kd_loss_published_flowers,
}


class Kd(MethodConfig):
    """Softened teacher outputs besides the labels."""

    per_image_loss: ClassVar[bool] = True

    name: Literal["kd"]
    temperature: Positive = Field(description="T, divides the logits of both networks")
    balance: LossWeights
    standardise: bool = Field(
        False, description="each image's logits to mean 0 and deviation 1 before T divides them (Sun et al. 2024)"
    )
    convention: Literal["corrected", "published_mnist", "published_cifar10", "published_flowers"] = Field(
        "corrected",
        description="as a reference implementation computes it: mnist KL(student || teacher) without T^2; cifar10"
        " divided by the number of classes; flowers without T^2",
    )

    @model_validator(mode="after")
    def _check_standardise(self) -> Self:
        if self.standardise and self.convention != "corrected":
            raise ValueError(f"standardise goes with convention corrected only, got {self.convention}")
        return self

    def criterion(self, context: MethodContext) -> "KdCriterion":
        """Build the criterion; with standardise it needs three classes."""
        if self.standardise:
            require_three_classes("kd with standardise", context)
        return KdCriterion(self, context)


class KdCriterion(WeightedCriterion):
    """Terms: cross_entropy, kd, and kd_without_t2, which is only logged and is comparable between temperatures."""

    def __init__(self, config: Kd, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.temperature = config.temperature
        self.standardise = config.standardise
        self.loss = CONVENTIONS[config.convention]

    def _loss_over_kl(self, classes: int) -> float:
        """Return the ratio of the loss and KL(teacher || student)."""
        if self.loss is kd_loss_published_flowers:
            return 1.0
        return self.temperature**2 / (classes if self.loss is kd_loss_published_cifar10 else 1)

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return kd and kd_without_t2."""
        student_NK, teacher_NK = student.logits, teacher.logits
        if self.standardise:
            student_NK, teacher_NK = standardize_logits(student_NK), standardize_logits(teacher_NK)
        value = self.loss(student_NK, teacher_NK, temperature=self.temperature)
        if self.loss is kd_loss_published_mnist:  # the other KL, of which the loss is no multiple
            without_t2 = kd_loss_published_flowers(student_NK.detach(), teacher_NK, temperature=self.temperature)
        else:
            without_t2 = value.detach() / self._loss_over_kl(student_NK.shape[1])
        return {"kd": LossTerm(value, self.weight), "kd_without_t2": LossTerm(without_t2, 0.0)}
