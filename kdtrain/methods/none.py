"""The student alone: cross-entropy with the labels. Every sweep trains it as the baseline."""

from typing import ClassVar, Literal

from torch import nn

from kdtrain.methods.base import Batch, Criterion, LabelLoss, LossTerm, MethodConfig, MethodContext, Outputs


class NoDistillation(MethodConfig):
    """Cross-entropy with the labels; no teacher."""

    per_image_loss: ClassVar[bool] = True

    name: Literal["none"]

    def criterion(self, context: MethodContext) -> Criterion:
        """Build the criterion."""
        return CrossEntropy(context)


class CrossEntropy(Criterion):
    """Term: cross_entropy."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.label_loss = LabelLoss(context)

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return cross_entropy; see Criterion."""
        return {"cross_entropy": LossTerm(self.label_loss(student.logits, batch), 1.0)}
