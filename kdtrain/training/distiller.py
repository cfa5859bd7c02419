"""Distiller: student and criterion, i.e. exactly what the student's optimizer trains and what one DDP wraps."""

from torch import Tensor, nn

from kdtrain.methods.base import Batch, Criterion, LossTerm, Outputs
from kdtrain.methods.r_drop import symmetric_kl
from kdtrain.models.classifier import Classifier


class Distiller(nn.Module):
    """A student, the criterion of its method, and the student's stages that the criterion needs.

    R-Drop's term is a sum over the batch if `summed`, as in the published setup, otherwise a mean.
    """

    def __init__(
        self,
        student: Classifier,
        criterion: Criterion,
        stages: tuple[str, ...] = (),
        r_drop_weight: float = 0.0,
        summed: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion
        self.stages = stages
        self.r_drop_weight = r_drop_weight
        self.summed = summed

    def forward(
        self, images: Tensor, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return the named loss terms of a batch of images [N, C, H, W] in [0, 1].

        With R-Drop (Liang et al. 2021, arXiv:2106.14448, equation 4) the student runs twice with different dropout.
        Every term is the mean over both passes, distillation terms too, and the term r_drop is added.
        """
        first = Outputs(*self.student.outputs(images, self.stages))
        terms: dict[str, LossTerm] = self.criterion(first, teacher, batch, critic)
        if not self.r_drop_weight:
            return terms
        second = Outputs(*self.student.outputs(images, self.stages))
        again: dict[str, LossTerm] = self.criterion(second, teacher, batch, critic)
        averaged = {name: LossTerm((term.value + again[name].value) / 2, term.weight) for name, term in terms.items()}
        r_drop = symmetric_kl(first.logits, second.logits) * (batch.size if self.summed else 1)
        return {**averaged, "r_drop": LossTerm(r_drop, self.r_drop_weight)}
