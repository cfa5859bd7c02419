"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv:1503.02531), section 2."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.fields import Positive
from kdtrain.methods.balance import Balance
from kdtrain.methods.base import (
    Batch,
    Criterion,
    MethodConfig,
    Outputs,
    Setting,
    Term,
    at_least_float32,
    cross_entropy,
)


def kd_loss(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), mean over N, in nats and float32.

    With T^2 the gradient keeps its scale when T is searched (section 2 of the paper).
    """
    return temperature**2 * _kl(teacher_NK, student_NK, temperature)


def kd_loss_published(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(s/T) || softmax(t/T)), mean over N: the arguments swapped and no T^2.

    The published MNIST setup computes F.kl_div(log_softmax(t/T), softmax(s/T), 'batchmean'); kept so that
    its numbers can be repeated, not because it is right.
    """
    return _kl(student_NK, teacher_NK, temperature)


def _kl(p_NK: Tensor, q_NK: Tensor, temperature: float) -> Tensor:
    log_p = functional.log_softmax(at_least_float32(p_NK) / temperature, dim=1)
    log_q = functional.log_softmax(at_least_float32(q_NK) / temperature, dim=1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class Kd(MethodConfig):
    """Softened teacher outputs beside the labels."""

    name: Literal["kd"]
    temperature: Positive = Field(description="T, divides the logits of both networks")
    balance: Balance
    convention: Literal["corrected", "published"] = Field(
        "corrected",
        description="published: KL(student || teacher) without T^2, as the MNIST document computes it",
    )

    def criterion(self, setting: Setting) -> Criterion:
        return KdCriterion(self, setting.label_smoothing)


class KdCriterion(Criterion):
    """Terms: cross_entropy, kd, and kd_without_t2 (shown only: comparable between temperatures)."""

    def __init__(self, config: Kd, label_smoothing: float) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.loss = kd_loss if config.convention == "corrected" else kd_loss_published
        self.cross_entropy_weight, self.kd_weight = config.balance.weights
        self.label_smoothing = label_smoothing

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, Term]:
        assert teacher is not None
        hard = cross_entropy(student.logits, batch.target, self.label_smoothing)
        soft = self.loss(student.logits, teacher.logits, temperature=self.temperature)
        corrected = (
            soft if self.loss is kd_loss else kd_loss(student.logits, teacher.logits, temperature=self.temperature)
        )
        return {
            "cross_entropy": Term(hard, self.cross_entropy_weight),
            "kd": Term(soft, self.kd_weight),
            "kd_without_t2": Term(corrected.detach() / self.temperature**2, 0.0),
        }
