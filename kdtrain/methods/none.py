"""The student alone: cross-entropy and nothing else. Every sweep trains it as the baseline."""

from typing import Literal

from torch import Tensor

from kdtrain.fields import Config
from kdtrain.methods.base import Criterion, Outputs, Term, cross_entropy


class NoDistillation(Config):
    """Cross-entropy with the labels; no teacher."""

    name: Literal["none"]

    def criterion(self, label_smoothing: float) -> Criterion:
        return CrossEntropy(label_smoothing)


class CrossEntropy(Criterion):
    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> dict[str, Term]:
        return {"cross_entropy": Term(cross_entropy(student.logits, target, self.label_smoothing), 1.0)}
