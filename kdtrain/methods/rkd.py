"""Relational Knowledge Distillation (Park, Kim, Lu, Cho 2019, arXiv:1904.05068): distances and angles.

N images of the global batch, D numbers that stand for an image (pooled features, or logits).
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import Positive
from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, at_least_float32
from kdtrain.methods.batch_relations import full_precision, gathered, refuse_single_image
from kdtrain.methods.loss_weights import Labelled

Features = Literal["pool", "logits"]
FEATURES = "what stands for an image: its pooled penultimate features, or its logits"


def rkd_distance_loss(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Equations 5-7: smooth-L1 (delta 1) between both networks' Euclidean distances, each divided by the mean of its
    positive entries; mean over all N^2 pairs (an image with itself counts, as in the authors' code), in float32.

    Distances are sums of squared differences, not |a|^2 + |b|^2 - 2ab: equal images have distance 0 exactly, and no
    gradient. The differences take O(N^2 D) memory on some devices.
    """
    with full_precision(student_ND):
        return functional.smooth_l1_loss(_distances(student_ND), _distances(teacher_ND.detach()))


def _distances(features_ND: Tensor) -> Tensor:
    features_ND = at_least_float32(features_ND)
    mode = "donot_use_mm_for_euclid_dist"
    distance_NN: Tensor = torch.cdist(features_ND, features_ND, compute_mode=mode)
    mean = distance_NN.sum() / (distance_NN > 0).sum().clamp(min=1)
    return distance_NN / torch.where(mean > 0, mean, 1.0)


def rkd_distance_loss_published(student_NK: Tensor, teacher_NK: Tensor, *, temperature: float) -> Tensor:
    """The same between log_softmax(s/T) and softmax(t/T): logarithms of one side against probabilities of the other.

    The CIFAR-10 document computes it so; kept so that its numbers can be repeated.
    """
    log_p = functional.log_softmax(at_least_float32(student_NK) / temperature, dim=1)
    q = functional.softmax(at_least_float32(teacher_NK) / temperature, dim=1)
    return rkd_distance_loss(log_p, q)


def rkd_angle_loss(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Equations 8-9: smooth-L1 (delta 1) between both networks' cosines of the angles of all triplets of images;
    mean over all N^3 (degenerate ones count as cosine 0, as in the authors' code), in float32.

    O(N^3 + N^2 D) memory: 1.6 GB at N = 512 with D = 1024. The direction between equal images is 0 and has no
    gradient (the authors' divides it by 1e-12).
    """
    with full_precision(student_ND):
        return functional.smooth_l1_loss(_cosines(student_ND), _cosines(teacher_ND.detach()))


def _cosines(features_ND: Tensor) -> Tensor:
    """[N, N, N]: at [i, j, k] the cosine of the angle at image i between images j and k."""
    features_ND = at_least_float32(features_ND)
    difference_NND = features_ND[:, None] - features_ND[None]
    squared_NN1 = difference_NND.square().sum(dim=2, keepdim=True)
    apart = squared_NN1 > 0
    length_NN1 = torch.where(apart, squared_NN1, 1.0).sqrt()
    direction_NND = difference_NND / length_NN1 * apart
    return direction_NND @ direction_NND.mT


class RkdDistance(MethodConfig):
    """Images that are near to one another for the teacher shall be near for the student."""

    name: Literal["rkd_distance"]
    balance: Labelled
    features: Features = Field("pool", description=FEATURES)
    convention: Literal["corrected", "published"] = Field(
        "corrected",
        description="published: log_softmax of the student's logits against softmax of the teacher's, as the CIFAR-10"
        " document computes it",
    )
    temperature: Positive = Field(1.5, description="published only: divides the logits of both networks")

    @model_validator(mode="after")
    def _what_the_convention_reads(self) -> Self:
        if self.convention == "published" and self.features != "logits":
            raise ValueError("convention published compares logits; write features: logits")
        if self.convention == "corrected" and self.temperature != RkdDistance.model_fields["temperature"].default:
            raise ValueError("temperature does nothing with convention corrected: distances have no scale; remove it")
        return self

    @property
    def needed_stages(self) -> tuple[str, ...]:
        return ("pool",) if self.features == "pool" else ()

    def criterion(self, setting: MethodContext) -> "RkdDistanceCriterion":
        refuse_single_image(self.name, setting)
        return RkdDistanceCriterion(self, setting)


class RkdDistanceCriterion(WeightedCriterion):
    """Terms: cross_entropy, rkd_distance (of the global batch)."""

    def __init__(self, config: RkdDistance, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.features = config.features
        self.temperature = config.temperature if config.convention == "published" else None

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        both = gathered(_read(student, self.features), _read(teacher, self.features), batch)
        if self.temperature is None:
            value = rkd_distance_loss(*both)
        else:
            value = rkd_distance_loss_published(*both, temperature=self.temperature)
        return {"rkd_distance": LossTerm(value, self.weight)}


class RkdAngle(MethodConfig):
    """Triplets of images shall span the same angles for student and teacher. Memory grows with batch_size^3."""

    name: Literal["rkd_angle"]
    balance: Labelled
    features: Features = Field("pool", description=FEATURES)

    @property
    def needed_stages(self) -> tuple[str, ...]:
        return ("pool",) if self.features == "pool" else ()

    def criterion(self, setting: MethodContext) -> "RkdAngleCriterion":
        refuse_single_image(self.name, setting)
        return RkdAngleCriterion(self, setting)


class RkdAngleCriterion(WeightedCriterion):
    """Terms: cross_entropy, rkd_angle (of the global batch)."""

    def __init__(self, config: RkdAngle, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.features = config.features

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        both = gathered(_read(student, self.features), _read(teacher, self.features), batch)
        return {"rkd_angle": LossTerm(rkd_angle_loss(*both), self.weight)}


def _read(outputs: Outputs, features: Features) -> Tensor:
    return outputs.logits if features == "logits" else outputs.features["pool"]
