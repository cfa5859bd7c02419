"""Similarity-Preserving Knowledge Distillation (Tung & Mori 2019, arXiv:1907.09682), equations 1-4."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdtrain.methods.balanced import WeightedCriterion
from kdtrain.methods.base import Batch, LossTerm, MethodConfig, MethodContext, Outputs, TeacherReading, at_least_float32
from kdtrain.methods.batch_relations import full_precision, refuse_single_image
from kdtrain.methods.loss_weights import Labelled
from kdtrain.methods.stage_fields import Stages
from kdtrain.runtime import distributed


def sp_loss(student_NCHW: Tensor, teacher_NCHW: Tensor, *, row_norm: int = 2) -> Tensor:
    """||G_s - G_t||_F^2 / N^2, G = F F^T of the flattened maps [N, CHW], each row divided by its L2 norm.

    In float32 inside autocast too: G overflows float16. C, H and W may differ between the networks.
    row_norm 1 is the published setup's F.normalize(G, 1), in which 1 is p and not the dimension: 58 times smaller
    at N = 64.
    """
    return similarity_loss(student_NCHW, similarity(teacher_NCHW.detach(), row_norm), row_norm=row_norm)


def similarity_loss(student_NCHW: Tensor, teacher_NN: Tensor, *, row_norm: int = 2) -> Tensor:
    """The same where the teacher's normalised G [N, N] is known."""
    return functional.mse_loss(similarity(student_NCHW, row_norm), teacher_NN)


def similarity(features_NCHW: Tensor, row_norm: int = 2) -> Tensor:
    """G [N, N], its rows normalised."""
    with full_precision(features_NCHW):
        flat = at_least_float32(features_NCHW).flatten(1)
        return functional.normalize(flat @ flat.T, p=row_norm, dim=1)


class Sp(MethodConfig):
    """Images that excite the teacher alike shall excite the student alike."""

    name: Literal["sp"]
    balance: Labelled
    stages: Stages = Field(("16", "32"), description="whose maps are compared; their losses are summed")
    convention: Literal["corrected", "published"] = Field(
        "corrected", description="published: rows divided by their L1 norm, as the CUB document's code does"
    )

    @property
    def needed_stages(self) -> tuple[str, ...]:
        return self.stages

    @property
    def readings(self) -> tuple[TeacherReading, ...]:
        norm = 1 if self.convention == "published" else 2
        make = partial(similarity, row_norm=norm)
        return tuple(TeacherReading(stage, f"similarity L{norm}", make, of_batch=True) for stage in self.stages)

    def criterion(self, setting: MethodContext) -> "SpCriterion":
        refuse_single_image(self.name, setting)
        return SpCriterion(self, setting)


class SpCriterion(WeightedCriterion):
    """Terms: cross_entropy, sp (of the global batch)."""

    def __init__(self, config: Sp, setting: MethodContext) -> None:
        super().__init__(config.balance, setting)
        self.readings = config.readings
        self.row_norm = 1 if config.convention == "published" else 2

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        values = []
        for reading in self.readings:
            own = distributed.gather_batch(at_least_float32(student.features[reading.stage].flatten(1)), batch.size)
            target = teacher.read.get(reading.name)
            if target is None:
                target = reading.make(
                    distributed.gather_batch(
                        at_least_float32(teacher.features[reading.stage].flatten(1)).detach(), batch.size
                    )
                )
            values.append(similarity_loss(own, target, row_norm=self.row_norm))
        return {"sp": LossTerm(torch.stack(values).sum(), self.weight)}
