"""What most criteria are: cross-entropy with the labels beside the method's own terms, weighed by a LossWeights."""

from torch import nn

from kdtrain.errors import UserError
from kdtrain.methods.base import Batch, Criterion, LossTerm, MethodContext, Outputs, cross_entropy
from kdtrain.methods.loss_weights import LossWeights


class WeightedCriterion(Criterion):
    """Cross-entropy plus the method's `distillation_terms`; `weight` is that of the distillation term."""

    def __init__(self, balance: LossWeights, setting: MethodContext) -> None:
        super().__init__()
        self.cross_entropy_weight, self.weight = balance.weights
        self.label_smoothing = setting.label_smoothing

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        assert teacher is not None
        hard = cross_entropy(student.logits, batch.target, self.label_smoothing)
        return {
            "cross_entropy": LossTerm(hard, self.cross_entropy_weight),
            **self.distillation_terms(student, teacher, batch),
        }

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """The method's own terms."""
        raise NotImplementedError


def refuse_two_classes(what: str, setting: MethodContext) -> None:
    """Raises UserError where a loss would be there and teach nothing."""
    if setting.classes < 3:
        raise UserError(
            f"recipe.method: {what} needs at least 3 classes, got {setting.classes}: with two its gradient is zero"
        )
