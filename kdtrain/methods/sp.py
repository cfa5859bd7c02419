"""Similarity-Preserving Knowledge Distillation (Tung & Mori 2019, arXiv:1907.09682), equations 1-4.

N images of the global batch, C channels, H x W positions.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kdtrain.methods.base import (
    Batch,
    LossTerm,
    MethodConfig,
    MethodContext,
    Outputs,
    Stages,
    TeacherReading,
    WeightedCriterion,
    at_least_float32,
    gather_global_batch,
    no_autocast,
    require_equal_shapes,
    require_two_images,
)
from kdtrain.methods.loss_weights import WithCrossEntropy


def sp_loss(student_NCHW: Tensor, teacher_NCHW: Tensor, *, row_norm: int = 2) -> Tensor:
    """Return ||G_s - G_t||_F^2 / N^2, where G = F F^T of the flattened maps [N, C H W] with normalized rows.

    At least float32 inside autocast too, since G overflows float16.

    Args:
        student_NCHW: features F_s [N, C, H, W] or [N, C].
        teacher_NCHW: features F_t of the same images; C, H and W may differ. They get no gradient.
        row_norm: p of the norm that divides each row of G. The paper has 2.

    Returns:
        Scalar.

    Raises:
        ValueError: if N differs.

    Source:
        Tung & Mori 2019, arXiv:1907.09682, equations 1-4.
    """
    require_equal_shapes(student_NCHW, teacher_NCHW, slice(1))
    return _similarity_loss(student_NCHW, similarity_matrix(teacher_NCHW.detach(), row_norm), row_norm)


def _similarity_loss(student_NCHW: Tensor, teacher_NN: Tensor, row_norm: int) -> Tensor:
    return functional.mse_loss(similarity_matrix(student_NCHW, row_norm), teacher_NN)


def similarity_matrix(features_NCHW: Tensor, row_norm: int = 2) -> Tensor:
    """Return G [N, N] of features [N, ...], with normalized rows."""
    with no_autocast(features_NCHW):
        flat = at_least_float32(features_NCHW).flatten(1)
        return functional.normalize(flat @ flat.T, p=row_norm, dim=1)


class Sp(MethodConfig):
    """Images that are similar for the teacher are similar for the student.

    convention published: the CUB reference implementation divides rows by their L1 norm, because the 1 in its
    F.normalize(G, 1) is p and not the dimension. The loss is then 58 times smaller at N = 64.
    """

    name: Literal["sp"]
    balance: WithCrossEntropy
    stages: Stages = Field(("16", "32"), description="whose maps are compared; their losses are summed")
    convention: Literal["corrected", "published"] = Field(
        "corrected",
        description="published: rows are divided by their L1 norm, as in the CUB reference implementation",
    )

    @property
    def row_norm(self) -> int:
        """The p of the norm of rows."""
        return 1 if self.convention == "published" else 2

    @property
    def needed_stages(self) -> tuple[str, ...]:
        """The stages of the config."""
        return self.stages

    @property
    def teacher_readings(self) -> tuple[TeacherReading, ...]:
        """The teacher's similarity matrices [N, N] of a global batch."""
        compute = partial(similarity_matrix, row_norm=self.row_norm)
        kind = f"similarity L{self.row_norm}"
        return tuple(TeacherReading(stage, kind, compute, whole_batch=True) for stage in self.stages)

    def criterion(self, context: MethodContext) -> "SpCriterion":
        """Build the criterion; it needs two images in a batch."""
        require_two_images(self.name, context)
        return SpCriterion(self, context)


class SpCriterion(WeightedCriterion):
    """Terms: cross_entropy, sp (of the global batch)."""

    def __init__(self, config: Sp, context: MethodContext) -> None:
        super().__init__(config.balance, context)
        self.teacher_readings = config.teacher_readings
        self.row_norm = config.row_norm

    def distillation_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, LossTerm]:
        """Return sp, summed over the stages."""
        values = []
        for reading in self.teacher_readings:
            own = gather_global_batch(student.features[reading.stage].flatten(1), batch)
            target = teacher.readings.get(reading.name)
            if target is None:
                features = teacher.features[reading.stage].detach().flatten(1)
                target = reading.compute(gather_global_batch(features, batch))
            values.append(_similarity_loss(own, target, self.row_norm))
        return {"sp": LossTerm(torch.stack(values).sum(), self.weight)}
