"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv:1503.02531), section 2.

Function matching (Beyer et al. 2021, arXiv:2106.05237) is this with `balance: {alpha: 1}` and mixed images.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.balanced import WeightedCriterion, refuse_two_classes
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, at_least_float32
from kdtrain.methods.logit_standardization import standardised
from kdtrain.methods.loss_weights import LossWeights


def kd_loss(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), mean over N, in nats and float32.

    With T^2 the gradient keeps its scale when T is searched (section 2 of the paper).
    """
    return temperature**2 * _kl(teacher_NK.detach(), student_NK, temperature)


def kd_loss_published_mnist(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(s/T) || softmax(t/T)), mean over N: the arguments swapped and no T^2.

    The MNIST document computes F.kl_div(log_softmax(t/T), softmax(s/T), 'batchmean'); kept so that its numbers can
    be repeated, not because it is right.
    """
    return _kl(student_NK, teacher_NK.detach(), temperature)


def kd_loss_published_cifar10(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), mean over N and K: K times smaller than the paper's.

    The CIFAR-10 document computes nn.KLDivLoss()(log_softmax(s/T), softmax(t/T)), whose default divides by N K.
    """
    return kd_loss(student_NK, teacher_NK, temperature=temperature) / student_NK.shape[1]


def kd_loss_published_flowers(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(t/T) || softmax(s/T)), mean over N, without T^2: T^2 times smaller than the paper's.

    The Flowers document computes keras.losses.KLDivergence()(softmax(t/T), softmax(s/T)).
    """
    return _kl(teacher_NK.detach(), student_NK, temperature)


def _kl(p_NK: Tensor, q_NK: Tensor, temperature: float) -> Tensor:
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
    """Softened teacher outputs beside the labels."""

    of_each_image: ClassVar[bool] = True

    name: Literal["kd"]
    temperature: Positive = Field(description="T, divides the logits of both networks")
    balance: LossWeights
    standardise: bool = Field(
        False, description="each image's logits to mean 0 and deviation 1 before T divides them (Sun et al. 2024)"
    )
    convention: Literal["corrected", "published_mnist", "published_cifar10", "published_flowers"] = Field(
        "corrected",
        description="as a document computes it: mnist KL(student || teacher) without T^2; cifar10 divided by the number"
        " of classes; flowers without T^2",
    )

    @model_validator(mode="after")
    def _standardise_what_is_corrected(self) -> Self:
        if self.standardise and self.convention != "corrected":
            raise ValueError(f"standardise goes with convention corrected only, got {self.convention}")
        return self

    def criterion(self, setting: MethodContext) -> "KdCriterion":
        if self.standardise:
            refuse_two_classes("kd with standardise", setting)
        return KdCriterion(self, setting)


class KdCriterion(WeightedCriterion):
    """Terms: cross_entropy, kd, and kd_without_t2 (shown only: comparable between temperatures)."""

    def __init__(self, config: Kd, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.temperature = config.temperature
        self.standardise = config.standardise
        self.loss = CONVENTIONS[config.convention]

    def times_kl(self, classes: int) -> float:
        """How many times KL(teacher || student) the loss is."""
        if self.loss is kd_loss_published_flowers:
            return 1.0
        return self.temperature**2 / (classes if self.loss is kd_loss_published_cifar10 else 1)

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        student_NK, teacher_NK = student.logits, teacher.logits
        if self.standardise:
            student_NK, teacher_NK = standardised(student_NK), standardised(teacher_NK)
        value = self.loss(student_NK, teacher_NK, temperature=self.temperature)
        if self.loss is kd_loss_published_mnist:  # which is no multiple of it
            without_t2 = kd_loss_published_flowers(student_NK.detach(), teacher_NK, temperature=self.temperature)
        else:
            without_t2 = value.detach() / self.times_kl(student_NK.shape[1])
        return {"kd": LossTerm(value, self.weight), "kd_without_t2": LossTerm(without_t2, 0.0)}
