"""Distiller = student + criterion: exactly what the student's optimizer trains, and what one DDP wraps."""

from torch import Tensor, nn

from kdtrain.methods import Criterion, Outputs, Term


class Distiller(nn.Module):
    def __init__(self, student: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion

    def forward(self, images: Tensor, teacher: Outputs | None, target: Tensor) -> dict[str, Term]:
        """Images [N, C, H, W], teacher outputs for the same images, target [N] -> named terms, means over N."""
        terms: dict[str, Term] = self.criterion(Outputs(self.student(images)), teacher, target)
        return terms
