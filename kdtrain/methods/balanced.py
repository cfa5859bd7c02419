"""What most criteria are: cross-entropy with the labels beside the method's own terms, weighed by a Balance."""

from torch import nn

from kdtrain.errors import UserError
from kdtrain.methods.base import Batch, Criterion, Outputs, Setting, Term, cross_entropy
from kdtrain.methods.loss_weights import Balance


class BalancedCriterion(Criterion):
    """Term cross_entropy, and what `taught` adds. `weight` is the balance's, of the distillation term."""

    def __init__(self, balance: Balance, setting: Setting) -> None:
        super().__init__()
        self.cross_entropy_weight, self.weight = balance.weights
        self.label_smoothing = setting.label_smoothing

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, Term]:
        assert teacher is not None
        hard = cross_entropy(student.logits, batch.target, self.label_smoothing)
        return {"cross_entropy": Term(hard, self.cross_entropy_weight), **self.taught(student, teacher, batch)}

    def taught(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Term]:
        """The method's own terms."""
        raise NotImplementedError


def refuse_two_classes(what: str, setting: Setting) -> None:
    """Raises UserError where a loss would be there and teach nothing."""
    if setting.classes < 3:
        raise UserError(
            f"recipe.method: {what} needs at least 3 classes, got {setting.classes}: with two its gradient is zero"
        )
