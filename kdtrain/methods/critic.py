"""The second player of an adversarial method: its network, its loss, and whose turn a step is."""

from dataclasses import dataclass

from torch import Tensor, nn

from kdtrain.methods.base import Batch, LossTerm


@dataclass(frozen=True)
class Turns:
    """`critic_steps` updates of the critic, then `student_steps` of the student, and so on.

    Counted over the whole training, or from the start of each epoch.
    """

    critic_steps: int
    student_steps: int
    restart_each_epoch: bool

    def is_critics(self, step: int, epoch_step: int) -> bool:
        counted = epoch_step if self.restart_each_epoch else step
        return counted % (self.critic_steps + self.student_steps) < self.critic_steps


class CriticLoss(nn.Module):
    """What the critic's own optimizer trains, and what its DDP wraps in its turn."""

    critic: nn.Module

    def forward(self, student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> dict[str, LossTerm]:
        """Logits of both networks [N, K] for the same images -> named terms, means over N."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Called after each update of the critic."""


@dataclass(frozen=True)
class CriticPlayer:
    loss: CriticLoss
    turns: Turns
    lr: float
