"""Relational Knowledge Distillation (Park, Kim, Lu, Cho 2019, arXiv:1904.05068): distances and angles.

N images of the global batch, D features of an image (pooled features, or logits), K classes.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    WeightedCriterion,
    at_least_float32,
    gather_global_batch,
    no_autocast,
    require_equal_shapes,
    require_two_images,
)
from kdtrain.methods.loss_weights import WithCrossEntropy

Features = Literal["pool", "logits"]
FEATURES = "features that represent an image: its pooled penultimate features, or its logits"


def rkd_distance_loss(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Return smooth-L1(d_s / mu_s, d_t / mu_t), mean over all N^2 pairs, in at least float32.

    d are Euclidean distances of images, mu is the mean of the positive ones; smooth-L1 has delta 1. Pairs of an image
    with itself count, as in the authors' code. Distances are computed from differences instead of
    |a|^2 + |b|^2 - 2ab, so that equal images have distance 0 and no gradient. Some devices need O(N^2 D) memory.

    Args:
        student_ND: features [N, D_s].
        teacher_ND: features [N, D_t] of the same images; they get no gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: if N differs.

    Source:
        Park et al. 2019, arXiv:1904.05068, equations 5-7.
    """
    require_equal_shapes(student_ND, teacher_ND, slice(1))
    with no_autocast(student_ND):
        return functional.smooth_l1_loss(_relative_distances(student_ND), _relative_distances(teacher_ND.detach()))


def _relative_distances(features_ND: Tensor) -> Tensor:
    features_ND = at_least_float32(features_ND)
    mode = "donot_use_mm_for_euclid_dist"
    distance_NN: Tensor = torch.cdist(features_ND, features_ND, compute_mode=mode)
    mean = distance_NN.sum() / (distance_NN > 0).sum().clamp(min=1)
    return distance_NN / torch.where(mean > 0, mean, 1.0)


def rkd_distance_loss_published(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """Return `rkd_distance_loss` of log_softmax(s/T) and softmax(t/T): logarithms against probabilities.

    The CIFAR-10 reference implementation computes this. This variant exists to repeat its results.
    """
    log_p = functional.log_softmax(at_least_float32(student_NK) / temperature, dim=1)
    q = functional.softmax(at_least_float32(teacher_NK) / temperature, dim=1)
    return rkd_distance_loss(log_p, q)


def rkd_angle_loss(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Return smooth-L1 between the cosines of the angles of all triplets of images, mean over N^3.

    smooth-L1 has delta 1. Degenerate triplets count with cosine 0, as in the authors' code. The direction between equal
    images is 0 and has no gradient (the authors divide it by 1e-12). At least float32. It needs O(N^3 + N^2 D) memory:
    1.6 GB at N = 512 and D = 1024.

    Args:
        student_ND: features [N, D_s].
        teacher_ND: features [N, D_t] of the same images; they get no gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: if N differs.

    Source:
        Park et al. 2019, arXiv:1904.05068, equations 8-9.
    """
    require_equal_shapes(student_ND, teacher_ND, slice(1))
    with no_autocast(student_ND):
        return functional.smooth_l1_loss(_cosines(student_ND), _cosines(teacher_ND.detach()))


def _cosines(features_ND: Tensor) -> Tensor:
    """Return [N, N, N]: at [i, j, k] the cosine of the angle at image i between images j and k."""
    features_ND = at_least_float32(features_ND)
    difference_NND = features_ND[:, None] - features_ND[None]
    squared_NN1 = difference_NND.square().sum(dim=2, keepdim=True)
    differs = squared_NN1 > 0
    length_NN1 = torch.where(differs, squared_NN1, 1.0).sqrt()
    direction_NND = difference_NND / length_NN1 * differs
    return direction_NND @ direction_NND.mT


class RkdDistance(MethodConfig):
    """Relative distances between images are the same for student and teacher.

    convention published: the CIFAR-10 reference implementation compares log_softmax(s/T) with softmax(t/T) instead of
    the same features of both networks.
    """

    name: Literal["rkd_distance"]
    balance: WithCrossEntropy
    features: Features = Field("pool", description=FEATURES)
    convention: Literal["corrected", "published"] = Field(
        "corrected",
        description="published: log_softmax of the student's logits against softmax of the teacher's, as in the"
        " CIFAR-10 reference implementation",
    )
    temperature: Positive = Field(1.5, description="published only: divides the logits of both networks")

    @model_validator(mode="after")
    def _check_convention(self) -> Self:
        if self.convention == "published" and self.features != "logits":
            raise ValueError("convention published compares logits; write features: logits")
        if self.convention == "corrected" and self.temperature != RkdDistance.model_fields["temperature"].default:
            raise ValueError("temperature does nothing with convention corrected: distances have no scale; remove it")
        return self

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """The pooled features, unless logits are compared."""
        return ("pool",) if self.features == "pool" else ()

    def criterion(self, context: MethodContext) -> "RkdDistanceCriterion":
        """Build the criterion; it needs two images in a batch."""
        require_two_images(self.name, context)
        return RkdDistanceCriterion(self, context)


class RkdDistanceCriterion(WeightedCriterion):
    """Terms: cross_entropy, rkd_distance (of the global batch)."""

    def __init__(self, config: RkdDistance, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.features = config.features
        self.temperature = config.temperature if config.convention == "published" else None

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return rkd_distance."""
        both = _gathered_features(student, teacher, self.features, batch)
        if self.temperature is None:
            value = rkd_distance_loss(*both)
        else:
            value = rkd_distance_loss_published(*both, temperature=self.temperature)
        return {"rkd_distance": LossTerm(value, self.weight)}


class RkdAngle(MethodConfig):
    """Angles of triplets of images are the same for student and teacher. Memory grows with batch_size^3."""

    name: Literal["rkd_angle"]
    balance: WithCrossEntropy
    features: Features = Field("pool", description=FEATURES)

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """The pooled features, unless logits are compared."""
        return ("pool",) if self.features == "pool" else ()

    def criterion(self, context: MethodContext) -> "RkdAngleCriterion":
        """Build the criterion; it needs two images in a batch."""
        require_two_images(self.name, context)
        return RkdAngleCriterion(self, context)


class RkdAngleCriterion(WeightedCriterion):
    """Terms: cross_entropy, rkd_angle (of the global batch)."""

    def __init__(self, config: RkdAngle, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.features = config.features

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return rkd_angle."""
        value = rkd_angle_loss(*_gathered_features(student, teacher, self.features, batch))
        return {"rkd_angle": LossTerm(value, self.weight)}


def _gathered_features(student: Outputs, teacher: Outputs, kind: Features, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the features [N, D] of both networks for the global batch, the teacher's without gradient."""
    own, target = (each.logits if kind == "logits" else each.features["pool"] for each in (student, teacher))
    return gather_global_batch(own, batch), gather_global_batch(target.detach(), batch)
