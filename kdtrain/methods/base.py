"""Base classes of methods and their helpers: a config, and a criterion from two networks' outputs to loss terms.

N images, K classes, C channels, H x W positions of a map.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor, nn
from torch.nn import functional

from kdtrain.base_config import Config, tuple_from_list
from kdtrain.errors import UserError
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.runtime import distributed
from kdtrain.runtime.source_code import source_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Outputs:
    """Outputs of one network for one batch.

    Attributes:
        logits: [N, K].
        features: {stage: [N, C, H, W]}, and "pool": [N, C].
        readings: {name of a TeacherReading: its tensor} for a teacher whose readings were cached by an earlier trial.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    readings: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherReading:
    """A function of the teacher's features at a stage, with which a criterion begins; its values can be cached.

    Attributes:
        stage: of the teacher.
        kind: names what is computed; two readings with equal stage and kind have equal values.
        compute: from features [N, C, H, W] or [N, C] to the reading.
        whole_batch: True if the value belongs to a whole global batch, so that only trials with the same batches can
            share it; False if row n belongs to image n.
    """

    stage: str
    kind: str
    compute: Callable[[Tensor], Tensor] = field(compare=False)
    whole_batch: bool = False

    @property
    def name(self) -> str:
        """Key in `Outputs.readings` and in the cache."""
        return f"{self.kind}:{self.stage}"

    @property
    def module(self) -> str:
        """Name of the module with the code of `compute`."""
        function = self.compute.func if isinstance(self.compute, partial) else self.compute
        return function.__module__


UNLABELLED = -1
"""The target of an image whose label is hidden; equals `data.base.HIDDEN`."""


@dataclass(frozen=True)
class Batch:
    """Targets, indices and counters of a batch: the input of a criterion besides the outputs of the networks.

    Random numbers of a method must be keyed by (seed, purpose, step, image index): then they do not depend on the
    number of workers.

    Attributes:
        target: class of each image [N], or probabilities [N, K] if images are mixed. An unlabelled image has the class
            UNLABELLED, and no probability; the sum of a row is then the share of its labelled images.
        indices: [N], on the CPU; positions of the images in the training split.
        seed: of the recipe.
        epoch: from 0.
        step: updates since the training began.
        epoch_step: updates since the epoch began.
        size: images of the global batch, i.e. of all ranks.
        count: images of this rank that count: N, or 0 on an idle rank, which runs one image to join the reductions.
        mean_label_weight: mean weight in the cross-entropy of the images of the global batch. The weight of an image is
            1, or that of its class, or 0 without a label; of a mixed image it is the sum of its target.
    """

    target: Tensor
    indices: Tensor
    seed: int = 0
    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    size: int = 0
    count: int = 0
    mean_label_weight: float = 1.0


@dataclass(frozen=True)
class MethodContext:
    """The sizes and shapes for which a criterion is built.

    Attributes:
        classes: K.
        batch_size: images of the global batch.
        label_smoothing: of the cross-entropy with the labels, in [0, 1).
        class_weights: of the cross-entropy with the labels, float32 [K], or None.
        seed: of the recipe.
        student_shapes: {stage: shape of one image's features}, measured by a dry forward.
        teacher_shapes: the same for the teacher.
    """

    classes: int
    batch_size: int
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    seed: int = 0
    student_shapes: dict[str, Shape] = field(default_factory=dict)
    teacher_shapes: dict[str, Shape] = field(default_factory=dict)


class LossTerm(NamedTuple):
    """One term of the loss.

    Attributes:
        value: scalar, in nats. The mean over this rank's N images; a relational term is that of the global batch
            (`distributed.gather_batch`), the same on all ranks.
        weight: factor in the loss; 0: the term is only logged.
    """

    value: Tensor
    weight: float


class Criterion(nn.Module):
    """The loss of a method. Its parameters (a projector, a generator) are trained by the student's optimizer."""

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return the named terms, whose weighted sum is the loss.

        Args:
            student: outputs with gradient.
            teacher: outputs for the same images, or None if the method has no teacher.
            batch: the images' targets and indices.
            critic: the frozen critic of an adversarial method, else None.
        """
        raise NotImplementedError


class LabelLoss(nn.Module):
    """Cross-entropy with the labels, as the recipe has it: with label smoothing and class weights.

    It is the mean over the labelled images of the global batch; 0 if there are none. With class weights w it is that of
    torch.nn.CrossEntropyLoss(weight=w): the sum over the images of w_y times their cross-entropy, divided by the sum of
    w_y, y the label. For mixed images torch divides by their number; here it is the sum of their targets, which is less
    if some of the images have no label.
    """

    class_weights: Tensor | None

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.label_smoothing = context.label_smoothing
        self.register_buffer("class_weights", context.class_weights, persistent=False)

    def forward(self, logits_NK: Tensor, batch: Batch) -> Tensor:
        """Return this rank's share as a mean over its N images, in nats; see `LossTerm`."""
        if self.class_weights is None and batch.mean_label_weight == 1:
            return cross_entropy(logits_NK, batch.target, self.label_smoothing)
        logits_NK = at_least_float32(logits_NK)
        weights_K = self.class_weights.to(logits_NK) if self.class_weights is not None else None
        total = functional.cross_entropy(
            logits_NK, batch.target, weights_K, reduction="sum", ignore_index=UNLABELLED,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        return total / (len(logits_NK) * (batch.mean_label_weight or 1.0))  # without a label the total is 0


class WeightedCriterion(Criterion):
    """Cross-entropy with the labels plus the `distillation_terms` of the method; `weight` is the weight of the latter.

    Term: cross_entropy.
    """

    def __init__(self, balance: LossWeights, context: MethodContext) -> None:
        super().__init__()
        self.cross_entropy_weight, self.weight = balance.weights
        self.label_loss = LabelLoss(context)

    def forward(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, critic: nn.Module | None = None
    ) -> dict[str, LossTerm]:
        """Return cross_entropy and the distillation terms; see Criterion."""
        assert teacher is not None
        return {
            "cross_entropy": LossTerm(self.label_loss(student.logits, batch), self.cross_entropy_weight),
            **self.distillation_terms(student, teacher, batch),
        }

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of the method itself; arguments as in `forward`."""
        raise NotImplementedError


class MethodConfig(Config):
    """Base class of the config of a method: what the method needs, and how its criterion is built."""

    needs_hard_labels: ClassVar[bool] = False
    """True if the criterion needs one class per image and refuses mixed targets [N, K]."""

    per_image_loss: ClassVar[bool] = False
    """True if each term is a mean over images, computed from logits alone. Then it is also evaluated on validation."""

    @property
    def turns(self) -> Any:
        """The `critic.Turns` of an adversarial method, or None."""
        return None

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """Stages of both networks whose features the criterion needs."""
        return ()

    @property
    def teacher_readings(self) -> tuple[TeacherReading, ...]:
        """Readings with which the criterion begins; by default the features themselves."""
        return tuple(TeacherReading(stage, "features", identity) for stage in self.needed_stages)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Remember the source of the method's module as it is imported, for the identity of its trials."""
        source_of(cls.__module__)

    def criterion(self, context: MethodContext) -> Criterion:
        """Build the criterion.

        Raises:
            UserError: if the method cannot work in this context.
        """
        raise NotImplementedError

    def critic(self, context: MethodContext) -> Any:
        """Build the `critic.CriticPlayer` of an adversarial method that trains its critic separately, else None."""
        return None


def identity(features: Tensor) -> Tensor:
    """Return the features: the teacher reading of a method that compares the features themselves."""
    return features


def read_teacher(reading: TeacherReading, teacher: Outputs) -> Tensor:
    """Return a reading of each image: the cached one, or computed from the teacher's features, without gradient."""
    cached = teacher.readings.get(reading.name)
    return reading.compute(teacher.features[reading.stage].detach()) if cached is None else cached


def cross_entropy(logits_NK: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy, mean over N, in nats and at least float32.

    Args:
        logits_NK: [N, K].
        target: classes [N], or probabilities [N, K].
        label_smoothing: share of the uniform distribution in the target (Szegedy et al. 2016, section 7).
    """
    return functional.cross_entropy(at_least_float32(logits_NK), target, label_smoothing=label_smoothing)


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, in which losses are computed inside autocast too; float64 stays, for checks."""
    return values if values.dtype == torch.float64 else values.float()


def require_equal_shapes(one: Tensor, other: Tensor, dims: slice = slice(None)) -> None:
    """Raise ValueError unless the tensors of both networks agree in these dimensions: torch might broadcast them."""
    if one.shape[dims] != other.shape[dims]:
        sizes = f"{tuple(one.shape[dims])} and {tuple(other.shape[dims])}"
        raise ValueError(f"the tensors of student and teacher must have equal sizes, got {sizes}")


def require_three_classes(what: str, context: MethodContext) -> None:
    """Raise UserError if K < 3, for losses whose gradient is zero between two classes."""
    if context.classes < 3:
        raise UserError(
            f"recipe.method: {what} needs at least 3 classes, got {context.classes}: with two its gradient is zero"
        )


def weighted_sum(terms: dict[str, LossTerm]) -> Tensor:
    """Return the loss: the sum of weight times value over the terms whose weight is not 0."""
    first, *others = (term for term in terms.values() if term.weight)
    total = first.weight * first.value
    for term in others:
        total = total + term.weight * term.value
    return total


def gather_global_batch(rows: Tensor, batch: Batch) -> Tensor:
    """Return the rows [N, ...] of all ranks in at least float32, with gradient if the rows have one."""
    # the cast comes first, so that the gradients of all ranks are summed in float32, as in one process
    return distributed.gather_batch(at_least_float32(rows), batch.size)


def no_autocast(values: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the values' device: Gram matrices overflow float16."""
    if values.is_meta:  # shapes only: nothing overflows, and torch has no autocast there
        return nullcontext()
    return torch.autocast(values.device.type, enabled=False)


def require_two_images(method: str, context: MethodContext) -> None:
    """Raise UserError if no batch has two images to compare."""
    if context.batch_size < 2:
        raise UserError(
            f"recipe.batch_size: {method} compares images of a batch, so it needs at least 2, got {context.batch_size}"
        )


StageName = Literal["1", "2", "4", "8", "16", "32"]


def _require_text(written: Any) -> Any:
    if isinstance(written, int):
        raise ValueError(f"a stage is text: write '{written}', got {written}")
    return written


def _require_distinct(stages: tuple[StageName, ...]) -> tuple[StageName, ...]:
    if not stages:
        raise ValueError("must name at least one of 4, 8, 16, 32, got []")
    if len(set(stages)) < len(stages):
        raise ValueError(f"must name each stage once, got [{', '.join(stages)}]")
    return stages


Stage = Annotated[StageName, BeforeValidator(_require_text)]
Stages = Annotated[tuple[Stage, ...], BeforeValidator(tuple_from_list), AfterValidator(_require_distinct)]


def require_equal_map_sizes(method: str, field: str, stages: tuple[str, ...], context: MethodContext) -> None:
    """Raise UserError if the maps of student and teacher differ in H or W at a stage; `field` is the config's key."""
    for stage in stages:
        student, teacher = context.student_shapes[stage], context.teacher_shapes[stage]
        if student[1:] != teacher[1:]:
            raise UserError(
                f"recipe.method.{field}: {method} compares maps of one height and width, but at stage '{stage}' the"
                f" student has {_shown(student)} and the teacher {_shown(teacher)} (channels x height x width)"
            )


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape))
