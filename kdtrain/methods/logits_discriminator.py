"""Distilling with a critic of logits, as setup 1 has it; Wasserstein losses after Arjovsky et al. 2017
(arXiv:1701.07875), gradient penalty after Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3.

The critic D scores softened probabilities [N, K]. In its turn it learns to tell teacher from student, in the
student's turn the student learns to be taken for the teacher.
"""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.base_config import Config, Count, Positive
from kdtrain.errors import UserError
from kdtrain.methods.base import (
    Batch,
    Criterion,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    at_least_float32,
    cross_entropy,
)
from kdtrain.methods.critic import CriticLoss, CriticPlayer, Turns
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.runtime.rng import generator, stream

FEWEST_CLASSES = 10


class GradientPenalty(Config):
    """weight * (|gradient of D| - 1)^2 at points between student and teacher."""

    name: Literal["gradient_penalty"]
    weight: Positive = 10.0


class WeightClipping(Config):
    """Every weight of the critic is kept within +- bound."""

    name: Literal["clipping"]
    bound: Positive = 0.01


class NoConstraint(Config):
    """Nothing keeps the critic smooth."""

    name: Literal["none"]


Lipschitz = Annotated[GradientPenalty | WeightClipping | NoConstraint, Field(discriminator="name")]


class CriticTraining(Config):
    """How the critic is trained: Adam, its own learning rate, constant."""

    lr: Positive = 1e-3
    lipschitz: Lipschitz = GradientPenalty(name="gradient_penalty")


class LogitsDiscriminator(MethodConfig):
    """A critic of softened logits as a second player.

    published (setup 1): the critic ends in a sigmoid and sees log_softmax(s/T) against softmax(t/T), cross-entropy is
    taken of log_softmax(s/T), and one optimizer updates student and critic together in both turns. What is left out of
    its turns is then 21 steps and 179, begun again in every epoch.
    """

    name: Literal["logits_discriminator"]
    balance: LossWeights
    temperature: Positive
    critic_steps: Count = Field(30, description="updates of the critic before the student's turn")
    student_steps: Count = Field(170, description="updates of the student before the critic's next turn")
    restart: Literal["never", "epoch"] = Field("never", description="epoch: every epoch begins with the critic's turn")
    critic_training: CriticTraining | None = None
    convention: Literal["corrected", "published"] = "corrected"

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        if written.get("convention", "corrected") == "published":
            return {"critic_steps": 21, "student_steps": 179, "restart": "epoch", **written}
        return {**written, "critic_training": {}} if written.get("critic_training") is None else written

    @model_validator(mode="after")
    def _one_optimizer_when_published(self) -> Self:
        if self.convention == "published" and self.critic_training is not None:
            raise ValueError("critic_training does nothing when published: one optimizer trains both; remove it")
        return self

    @property
    def turns(self) -> Turns:
        return Turns(self.critic_steps, self.student_steps, self.restart == "epoch")

    def criterion(self, setting: MethodContext) -> Criterion:
        _require_classes(setting.classes)
        if self.convention == "published":
            return PublishedCriterion(self, setting)
        return DiscriminatorCriterion(self, setting.label_smoothing)

    def critic(self, setting: MethodContext) -> CriticPlayer | None:
        if self.critic_training is None:
            return None
        _require_classes(setting.classes)
        loss = WassersteinLoss(fresh_critic(setting, published=False), self.temperature, self.critic_training.lipschitz)
        return CriticPlayer(loss, self.turns, self.critic_training.lr)


class Critic(nn.Module):
    """Probabilities [N, K] -> scores [N]: the setup's two convolutions; what is left of K after them, K - 9, sizes the
    last layer.

    published: BatchNorm and a sigmoid. Else neither: BatchNorm ties the images of a batch together, so that each
    image's gradient penalty would be another's too, and it hides the difference of means that the critic looks for.
    GroupNorm with one group takes its place, as Gulrajani et al. (section 4) advise. A sigmoid bounds the scores, and
    a Wasserstein critic has none.
    """

    def __init__(self, classes: int, published: bool) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm1d(channels) if published else nn.GroupNorm(1, channels)

        self.layers = nn.Sequential(
            nn.Conv1d(1, 4, 4), norm(4), nn.ReLU(), nn.AvgPool1d(3, stride=1),
            nn.Conv1d(4, 16, 3), norm(16), nn.ReLU(), nn.AvgPool1d(3, stride=1), nn.Flatten(),
        )  # fmt: skip
        self.score = nn.Linear(16 * (classes - 9), 1)
        self.published = published

    def forward(self, probabilities_NK: Tensor) -> Tensor:
        with torch.autocast(probabilities_NK.device.type, enabled=False):  # probabilities are float32, and stay it
            scores: Tensor = self.score(self.layers(probabilities_NK[:, None]))[:, 0]
            return torch.sigmoid(scores) if self.published else scores


def fresh_critic(setting: MethodContext, published: bool) -> Critic:
    """Weights drawn from the recipe's seed; the caller's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(setting.seed, "critic"))
        return Critic(setting.classes, published)


class DiscriminatorCriterion(Criterion):
    """The student's turn: cross_entropy, and adversarial = -T^2 mean D(softmax(s/T))."""

    def __init__(self, config: LogitsDiscriminator, label_smoothing: float) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.cross_entropy_weight, self.adversarial_weight = config.balance.weights
        self.label_smoothing = label_smoothing

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        assert critic is not None
        hard = cross_entropy(student.logits, batch.target, self.label_smoothing)
        fooled = -(self.temperature**2) * critic(softened(student.logits, self.temperature)).mean()
        return {
            "cross_entropy": LossTerm(hard, self.cross_entropy_weight),
            "adversarial": LossTerm(fooled, self.adversarial_weight),
        }


class WassersteinLoss(CriticLoss):
    """The critic's turn: mean D(student) - mean D(teacher), with the gradient penalty where it is asked for.

    Not weighted by alpha T^2 as the setup writes it: the critic's optimizer is its own, so a weight of its whole
    loss would only change how much the penalty counts.
    """

    def __init__(self, critic: Critic, temperature: float, lipschitz: Lipschitz) -> None:
        super().__init__()
        self.critic = critic
        self.temperature = temperature
        self.penalty_weight = lipschitz.weight if isinstance(lipschitz, GradientPenalty) else 0.0
        self.bound = lipschitz.bound if isinstance(lipschitz, WeightClipping) else None

    def forward(self, student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> dict[str, LossTerm]:
        """The gap, mean D(teacher) - mean D(student), counts -1; it estimates how far the two are apart."""
        ours, theirs = (softened(logits, self.temperature) for logits in (student_NK, teacher_NK))
        gap = self.critic(theirs).mean() - self.critic(ours).mean()
        terms = {"critic_gap": LossTerm(gap, -1.0)}
        if self.penalty_weight:
            points = between(ours, theirs, batch)
            terms["gradient_penalty"] = LossTerm(gradient_penalty(self.critic, points), self.penalty_weight)
        return terms

    @torch.no_grad()
    def constrain(self) -> None:
        if self.bound is not None:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.bound, self.bound)


class PublishedCriterion(Criterion):
    """Both turns of the published code: the critic is trained with the student, by one optimizer.

    The student's turn: -T^2 mean D(log_softmax(s/T)); the critic's: T^2 mean (D(log_softmax(s/T)) - D(softmax(t/T)));
    cross-entropy of log_softmax(s/T) in both.
    """

    def __init__(self, config: LogitsDiscriminator, setting: MethodContext) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.turns = config.turns
        self.cross_entropy_weight, self.adversarial_weight = config.balance.weights
        self.label_smoothing = setting.label_smoothing
        self.critic = fresh_critic(setting, published=True)
        if self.adversarial_weight == 0:  # nothing would reach these parameters, which DDP does not forgive
            self.critic.requires_grad_(False)

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        assert teacher is not None
        ours = functional.log_softmax(at_least_float32(student.logits) / self.temperature, dim=1)
        hard = LossTerm(cross_entropy(ours, batch.target, self.label_smoothing), self.cross_entropy_weight)
        scale = self.temperature**2
        if self.turns.is_critics(batch.step, batch.epoch_step):
            theirs = softened(teacher.logits, self.temperature)
            gap = (self.critic(theirs) - self.critic(ours)).mean()
            return {"cross_entropy": hard, "critic_gap": LossTerm(scale * gap, -self.adversarial_weight)}
        return {
            "cross_entropy": hard,
            "adversarial": LossTerm(-scale * self.critic(ours).mean(), self.adversarial_weight),
        }


def softened(logits_NK: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T), at least float32."""
    return functional.softmax(at_least_float32(logits_NK) / temperature, dim=1)


def between(student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> Tensor:
    """A point on the line between both for each image, where the penalty is taken; drawn by step and image."""
    drawn = [
        torch.rand((), generator=generator(batch.seed, "penalty", batch.step, index), dtype=torch.float64)
        for index in batch.indices.tolist()
    ]
    share_N1 = torch.stack(drawn)[:, None].to(student_NK)
    return share_N1 * student_NK + (1 - share_N1) * teacher_NK


def gradient_penalty(critic: nn.Module, points_NK: Tensor) -> Tensor:
    """(|gradient of D at the point|_2 - 1)^2, mean over N (Gulrajani et al. 2017, eq. 3), computed in float32."""
    points = points_NK.detach().requires_grad_()
    with torch.enable_grad():
        (gradient_NK,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    norm_N = (gradient_NK.square().sum(1) + 1e-12).sqrt()  # the root's own gradient is infinite at 0
    return (norm_N - 1).square().mean()


def _require_classes(classes: int) -> None:
    if classes < FEWEST_CLASSES:
        raise UserError(
            f"recipe.method: logits_discriminator needs at least {FEWEST_CLASSES} classes, since its critic convolves "
            f"along them; got {classes}"
        )
