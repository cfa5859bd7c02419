"""The critic of an adversarial method: its loss, its learning rate, and which network a step updates."""

from dataclasses import dataclass

from torch import Tensor, nn

from kdtrain.methods.base import Batch, LossTerm


@dataclass(frozen=True)
class Turns:
    """A cycle of `critic_steps` updates of the critic, then `student_steps` of the student.

    Attributes:
        critic_steps: at least 1.
        student_steps: at least 1.
        restart_each_epoch: True starts the cycle again in each epoch, False counts over the whole training.
    """

    critic_steps: int
    student_steps: int
    restart_each_epoch: bool

    def is_critics(self, step: int, epoch_step: int) -> bool:
        """Return True if the critic is updated in the step that has these numbers in the training and in the epoch."""
        counted = epoch_step if self.restart_each_epoch else step
        return counted % (self.critic_steps + self.student_steps) < self.critic_steps


class CriticLoss(nn.Module):
    """The critic and its loss: what the critic's own optimizer trains, and what one DDP wraps."""

    critic: nn.Module

    def forward(self, student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> dict[str, LossTerm]:
        """Return named terms, means over N.

        Args:
            student_NK: logits [N, K].
            teacher_NK: logits [N, K] for the same images.
            batch: the images' indices.
        """
        raise NotImplementedError

    def constrain(self) -> None:
        """Limit the critic's weights; called after each of its updates."""


@dataclass(frozen=True)
class CriticPlayer:
    """A critic that is trained separately from the student, with a constant learning rate `lr`."""

    loss: CriticLoss
    turns: Turns
    lr: float
