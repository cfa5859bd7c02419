"""What every method is: from the outputs of two networks and a batch to named, weighted loss terms."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.base_config import Config

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Outputs:
    """Of one network for one batch: logits [N, K] and features {stage: [N, C, H, W]}, "pool": [N, C]."""

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)
    """What a method makes of a teacher's features, by `TeacherReading.name`, if it was cached by an earlier trial."""


@dataclass(frozen=True)
class TeacherReading:
    """What a method makes of a teacher's features at a stage before it compares: small enough to be kept.

    of_batch: of a whole global batch, so that it serves trials of the same batches only; else of each image.
    """

    stage: str
    kind: str
    make: Callable[[Tensor], Tensor] = field(compare=False)
    of_batch: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.stage}"


@dataclass(frozen=True)
class Batch:
    """What a criterion knows of a batch beside two networks' outputs. N images are this rank's, `size` are all ranks'.

    Random draws of a method are keyed by (seed, purpose, step, image index): no number of workers changes them.
    """

    target: Tensor  # classes [N], or probabilities [N, K] where images are mixed
    indices: Tensor  # [N] on the CPU: which images of the training split
    seed: int = 0
    epoch: int = 0
    step: int = 0  # updates since the training began
    epoch_step: int = 0  # updates since the epoch began
    size: int = 0  # images of the global batch
    count: int = 0  # of the N images those that count: N, or 0 on a rank that only joins the reduction


@dataclass(frozen=True)
class MethodContext:
    """What a criterion is built for. Shapes are one image's, measured by a dry forward of both networks."""

    classes: int
    batch_size: int
    label_smoothing: float = 0.0
    seed: int = 0
    student_shapes: dict[str, Shape] = field(default_factory=dict)
    teacher_shapes: dict[str, Shape] = field(default_factory=dict)


class LossTerm(NamedTuple):
    """One part of the loss: its mean over the N images in nats, and what it counts. Weight 0: only shown.

    A term of this rank's own images is their mean. A relational term gathers (ranks.gather_batch) and is the global
    batch's, the same on all ranks.
    """

    value: Tensor
    weight: float


class Criterion(nn.Module):
    """(student Outputs, teacher Outputs or None, Batch, critic) -> {name: LossTerm}; the loss is the weighted sum.

    `critic` is the second player of an adversarial method, frozen; None for every other method.
    """

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        raise NotImplementedError


class MethodConfig(Config):
    """The base of every method's config: what the method needs, and the criterion that it makes."""

    hard_labels: ClassVar[bool] = False
    """Whether the criterion needs one class per image: it cannot read mixed targets [N, K]."""

    of_each_image: ClassVar[bool] = False
    """Whether each term is a mean over images of what their logits alone give: then any split can be judged by it."""

    @property
    def turns(self) -> Any:
        """The `adversary.Turns` of an adversarial method, or None."""
        return None

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """Stages of both networks that the criterion reads."""
        return ()

    @property
    def readings(self) -> tuple[TeacherReading, ...]:
        """What the criterion makes of the teacher's features at those stages, first of all: by default nothing."""
        return tuple(TeacherReading(stage, "features", unchanged) for stage in self.needed_stages)

    def criterion(self, setting: MethodContext) -> Criterion:
        """Raises UserError where the method cannot do what the setting asks."""
        raise NotImplementedError

    def critic(self, setting: MethodContext) -> Any:
        """The second player, an `adversary.CriticPlayer`, or None."""
        return None


def unchanged(features: Tensor) -> Tensor:
    """The reading of a method that compares the features themselves."""
    return features


def known_or_made(reading: TeacherReading, teacher: Outputs) -> Tensor:
    """The reading of each image, as it was kept or from the features themselves."""
    known = teacher.read.get(reading.name)
    return reading.make(teacher.features[reading.stage].detach()) if known is None else known


def cross_entropy(logits_NK: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy with classes [N] or probabilities [N, K], mean over N, in nats and float32; smoothing as
    Szegedy et al. 2016, sec. 7."""
    return functional.cross_entropy(at_least_float32(logits_NK), target, label_smoothing=label_smoothing)


def at_least_float32(values: Tensor) -> Tensor:
    """What a loss is computed in, inside autocast too; float64 is left alone, so that a loss can be checked in it."""
    return values if values.dtype == torch.float64 else values.float()


def weighted_sum(terms: dict[str, LossTerm]) -> Tensor:
    """The loss that is differentiated."""
    first, *others = (term for term in terms.values() if term.weight)
    total = first.weight * first.value
    for term in others:
        total = total + term.weight * term.value
    return total
