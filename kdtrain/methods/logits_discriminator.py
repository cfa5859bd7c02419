"""Distillation with a critic of logits, after setup 1.

Wasserstein losses: Arjovsky et al. 2017 (arXiv:1701.07875). Gradient penalty: Gulrajani et al. 2017 (arXiv:1704.00028).
The critic D scores softened probabilities. In its turn it learns to separate teacher and student; in the student's turn
the student learns to get high scores. N images, K classes, temperature T.
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
    LabelLoss,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    at_least_float32,
    no_autocast,
)
from kdtrain.methods.critic import CriticLoss, CriticPlayer, Turns
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import generator, seeded, stream

MIN_CLASSES = 10


def wasserstein_critic_loss(student_scores_N: Tensor, teacher_scores_N: Tensor) -> Tensor:
    """Return mean D(student) - mean D(teacher), which the critic minimizes.

    If D has slopes of at most 1 (see `gradient_penalty`), the minimum is minus the Wasserstein-1 distance between the
    two distributions.

    Args:
        student_scores_N: scores of the critic for the student's outputs [N].
        teacher_scores_N: scores for the teacher's outputs [N].

    Returns:
        Scalar.

    Source:
        Arjovsky et al. 2017, arXiv:1701.07875, algorithm 1.
    """
    return student_scores_N.mean() - teacher_scores_N.mean()


def gradient_penalty(critic: nn.Module, points_NK: Tensor) -> Tensor:
    """Return (|dD/dx|_2 - 1)^2 at the points, mean over N.

    Args:
        critic: D, a module from [N, K] to scores [N] that treats the images of a batch separately (no batch
            normalization).
        points_NK: points at which the gradient of D is taken, e.g. random ones on the line between student and
            teacher; they get no gradient.

    Returns:
        Scalar, differentiable in the critic's parameters.

    Source:
        Gulrajani et al. 2017, arXiv:1704.00028, equation 3.
    """
    points = points_NK.detach().requires_grad_()
    with torch.enable_grad():
        (gradient_NK,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    norm_N = (gradient_NK.square().sum(1) + 1e-12).sqrt()  # the gradient of the root is infinite at 0
    return (norm_N - 1).square().mean()


def softened_probabilities(logits_NK: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / T) [N, K] in at least float32."""
    return functional.softmax(at_least_float32(logits_NK) / temperature, dim=1)


def interpolate(student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> Tensor:
    """Return a random point on the line between student and teacher for each image [N, K].

    The random number of an image depends on the seed, the step and its index only.
    """
    draws = [
        torch.rand((), generator=generator(batch.seed, "penalty", batch.step, index), dtype=torch.float64)
        for index in batch.indices.tolist()
    ]
    share_N1 = to_device(torch.stack(draws)[:, None].to(student_NK.dtype), student_NK.device)
    return share_N1 * student_NK + (1 - share_N1) * teacher_NK


class GradientPenalty(Config):
    """Adds weight * `gradient_penalty` at points between student and teacher."""

    name: Literal["gradient_penalty"]
    weight: Positive = 10.0


class WeightClipping(Config):
    """Limits every weight of the critic to [-bound, bound]."""

    name: Literal["clipping"]
    bound: Positive = 0.01


class NoConstraint(Config):
    """Does not limit the slope of the critic."""

    name: Literal["none"]


Lipschitz = Annotated[GradientPenalty | WeightClipping | NoConstraint, Field(discriminator="name")]


class CriticTraining(Config):
    """The critic's own Adam, with a constant learning rate, and its Lipschitz constraint."""

    lr: Positive = 1e-3
    lipschitz: Lipschitz = GradientPenalty(name="gradient_penalty")


class LogitsDiscriminator(MethodConfig):
    """A critic of softened logits, trained in turns with the student.

    convention published (setup 1): the critic ends in a sigmoid and gets log_softmax(s/T) and softmax(t/T), the
    cross-entropy is that of log_softmax(s/T), and one optimizer updates student and critic together in both turns.
    The default turns are then 21 and 179 steps, which start again in every epoch.
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
    def _fill_in(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        if written.get("convention", "corrected") == "published":
            return {"critic_steps": 21, "student_steps": 179, "restart": "epoch", **written}
        return {**written, "critic_training": {}} if written.get("critic_training") is None else written

    @model_validator(mode="after")
    def _check_convention(self) -> Self:
        if self.convention == "published" and self.critic_training is not None:
            raise ValueError("critic_training does nothing when published: one optimizer trains both; remove it")
        return self

    @property
    def turns(self) -> Turns:
        """The cycle of critic and student."""
        return Turns(self.critic_steps, self.student_steps, self.restart == "epoch")

    def criterion(self, context: MethodContext) -> Criterion:
        """Build the criterion of the student's turn, or of both turns if published.

        Raises:
            UserError: if there are too few classes for the critic's convolutions.
        """
        _require_classes(context.classes)
        if self.convention == "published":
            return PublishedCriterion(self, context)
        return DiscriminatorCriterion(self, context)

    def critic(self, context: MethodContext) -> CriticPlayer | None:
        """Build the critic; None if published, because the criterion has it.

        Raises:
            UserError: if there are too few classes for the critic's convolutions.
        """
        if self.critic_training is None:
            return None
        _require_classes(context.classes)
        critic = new_critic(context, published=False)
        loss = WassersteinLoss(critic, self.temperature, self.critic_training.lipschitz)
        return CriticPlayer(loss, self.turns, self.critic_training.lr)


class Critic(nn.Module):
    """D: probabilities [N, K] -> scores [N]. Setup 1's two convolutions over classes, then a linear layer.

    published: with BatchNorm and a sigmoid. Otherwise with neither. BatchNorm makes the score of an image depend on the
    other images of the batch, so that the gradient penalty is wrong, and it hides the difference of means that the
    critic must find. GroupNorm with one group takes its place, as Gulrajani et al. advise (section 4). A sigmoid bounds
    the scores, and those of a Wasserstein critic are unbounded.
    """

    def __init__(self, classes: int, published: bool) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm1d(channels) if published else nn.GroupNorm(1, channels)

        self.layers = nn.Sequential(
            nn.Conv1d(1, 4, 4), norm(4), nn.ReLU(), nn.AvgPool1d(3, stride=1),
            nn.Conv1d(4, 16, 3), norm(16), nn.ReLU(), nn.AvgPool1d(3, stride=1), nn.Flatten(),
        )  # fmt: skip
        self.score = nn.Linear(16 * (classes - 9), 1)  # convolutions and pooling shorten K by 3 + 2 + 2 + 2
        self.published = published

    def forward(self, probabilities_NK: Tensor) -> Tensor:
        """Return scores [N]."""
        with no_autocast(probabilities_NK):  # probabilities are float32
            scores: Tensor = self.score(self.layers(probabilities_NK[:, None]))[:, 0]
            return torch.sigmoid(scores) if self.published else scores


def new_critic(context: MethodContext, published: bool) -> Critic:
    """Return a critic with weights drawn from the recipe's seed; the caller's random generator is left as it was."""
    with seeded(stream(context.seed, "critic")):
        return Critic(context.classes, published)


class DiscriminatorCriterion(Criterion):
    """The student's turn. Terms: cross_entropy, and adversarial = -T^2 mean D(softmax(s/T))."""

    def __init__(self, config: LogitsDiscriminator, context: MethodContext) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.cross_entropy_weight, self.adversarial_weight = config.balance.weights
        self.label_loss = LabelLoss(context)

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return cross_entropy and adversarial; see Criterion."""
        assert critic is not None
        hard = self.label_loss(student.logits, batch)
        probabilities = softened_probabilities(student.logits, self.temperature)
        adversarial = -(self.temperature**2) * critic(probabilities).mean()
        return {
            "cross_entropy": LossTerm(hard, self.cross_entropy_weight),
            "adversarial": LossTerm(adversarial, self.adversarial_weight),
        }


class WassersteinLoss(CriticLoss):
    """The critic's turn. Terms: critic_gap = mean D(teacher) - mean D(student), of weight -1, and gradient_penalty.

    The gap estimates the distance between teacher and student. Unlike in setup 1 it has no factor alpha T^2: the critic
    has its own optimizer, so such a factor would only change the relative weight of the penalty.
    """

    def __init__(self, critic: Critic, temperature: float, lipschitz: Lipschitz) -> None:
        super().__init__()
        self.critic = critic
        self.temperature = temperature
        self.penalty_weight = lipschitz.weight if isinstance(lipschitz, GradientPenalty) else 0.0
        self.bound = lipschitz.bound if isinstance(lipschitz, WeightClipping) else None

    def forward(self, student_NK: Tensor, teacher_NK: Tensor, batch: Batch) -> dict[str, LossTerm]:
        """Return critic_gap, and gradient_penalty if the constraint is one; see CriticLoss."""
        student, teacher = (softened_probabilities(logits, self.temperature) for logits in (student_NK, teacher_NK))
        teacher_scores_N = self.critic(teacher)
        gap = -wasserstein_critic_loss(self.critic(student), teacher_scores_N)
        terms = {"critic_gap": LossTerm(gap, -1.0)}
        if self.penalty_weight:
            points = interpolate(student, teacher, batch)
            terms["gradient_penalty"] = LossTerm(gradient_penalty(self.critic, points), self.penalty_weight)
        return terms

    @torch.no_grad()
    def constrain(self) -> None:
        """Clip the critic's weights if the constraint is clipping."""
        if self.bound is not None:
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.bound, self.bound)


class PublishedCriterion(Criterion):
    """Both turns of setup 1's reference implementation, in which one optimizer trains student and critic.

    Terms of the student's turn: cross_entropy, adversarial = -T^2 mean D(log_softmax(s/T)). Of the critic's turn:
    cross_entropy, critic_gap = T^2 mean (D(softmax(t/T)) - D(log_softmax(s/T))). The cross-entropy is that of
    log_softmax(s/T) in both.
    """

    def __init__(self, config: LogitsDiscriminator, context: MethodContext) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.turns = config.turns
        self.cross_entropy_weight, self.adversarial_weight = config.balance.weights
        self.label_loss = LabelLoss(context)
        self.critic = new_critic(context, published=True)
        if self.adversarial_weight == 0:  # DDP fails if a trained parameter gets no gradient
            self.critic.requires_grad_(False)

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return the terms of the turn that the step belongs to; see Criterion."""
        assert teacher is not None
        log_p = functional.log_softmax(at_least_float32(student.logits) / self.temperature, dim=1)
        hard = LossTerm(self.label_loss(log_p, batch), self.cross_entropy_weight)
        scale = self.temperature**2
        if self.turns.is_critics(batch.step, batch.epoch_step):
            q = softened_probabilities(teacher.logits, self.temperature)
            gap = (self.critic(q) - self.critic(log_p)).mean()
            return {"cross_entropy": hard, "critic_gap": LossTerm(scale * gap, -self.adversarial_weight)}
        return {
            "cross_entropy": hard,
            "adversarial": LossTerm(-scale * self.critic(log_p).mean(), self.adversarial_weight),
        }


def _require_classes(classes: int) -> None:
    if classes < MIN_CLASSES:
        raise UserError(
            f"recipe.method: logits_discriminator needs at least {MIN_CLASSES} classes, since its critic convolves "
            f"along them; got {classes}"
        )
