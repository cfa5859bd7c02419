"""The student alone: cross-entropy with the labels. Every sweep trains it as the baseline."""

from typing import ClassVar, Literal

from torch import nn

from kdtrain.methods.base import Batch, Criterion, LossTerm, MethodConfig, MethodContext, Outputs, cross_entropy


class NoDistillation(MethodConfig):
    """Cross-entropy with the labels; no teacher."""

    per_image_loss: ClassVar[bool] = True

    name: Literal["none"]

    def criterion(self, context: MethodContext) -> Criterion:
        """Build the criterion."""
        return CrossEntropy(context.label_smoothing)


class CrossEntropy(Criterion):
    """Term: cross_entropy."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return cross_entropy; see Criterion."""
        return {"cross_entropy": LossTerm(cross_entropy(student.logits, batch.target, self.label_smoothing), 1.0)}
