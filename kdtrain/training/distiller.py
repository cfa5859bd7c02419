"""Distiller = student + criterion: exactly what the student's optimizer trains, and what one DDP wraps."""

from torch import Tensor, nn
from torch.nn import functional

from kdtrain.methods.base import Batch, Criterion, LossTerm, Outputs, at_least_float32
from kdtrain.models.classifier import Classifier


class Distiller(nn.Module):
    """r_drop_weight: R-Drop's alpha, 0 without it; summed: over the batch, as the published setup has it."""

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
        """Images [N, C, H, W], teacher outputs for the same images, their batch -> named terms, means over N.

        With R-Drop (Liang et al. 2021, arXiv:2106.14448, eq. 4) two passes with dropout: every term is averaged over
        both, distillation too, and the symmetric KL between the passes joins them.
        """
        first = Outputs(*self.student.outputs(images, self.stages))
        terms: dict[str, LossTerm] = self.criterion(first, teacher, batch, critic)
        if not self.r_drop_weight:
            return terms
        second = Outputs(*self.student.outputs(images, self.stages))
        again: dict[str, LossTerm] = self.criterion(second, teacher, batch, critic)
        averaged = {name: LossTerm((term.value + again[name].value) / 2, term.weight) for name, term in terms.items()}
        between = symmetric_kl(first.logits, second.logits) * (batch.size if self.summed else 1)
        return {**averaged, "r_drop": LossTerm(between, self.r_drop_weight)}


def symmetric_kl(one_NK: Tensor, other_NK: Tensor) -> Tensor:
    """(KL(p || q) + KL(q || p)) / 2, mean over N, in nats and float32."""
    log_p = functional.log_softmax(at_least_float32(one_NK), dim=1)
    log_q = functional.log_softmax(at_least_float32(other_NK), dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2
