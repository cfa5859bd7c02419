"""The teacher's outputs for a training's images: computed live here, or read from a cache (`cached`).

Both give the same, on a CPU bit for bit: an image's outputs depend on that image alone (CHUNK_IMAGES), and a view is a
pure function of (seed, epoch, image). N images, K classes.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import Precision
from kdtrain.config.teacher import Teacher as TeacherConfig
from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.mixup import Mixup, mixed, pairing
from kdtrain.data.registry import AnyData
from kdtrain.data.sampling import Drawing
from kdtrain.methods.base import Batch, Outputs, TeacherReading
from kdtrain.runtime import distributed
from kdtrain.runtime.device import to_device
from kdtrain.teacher.network import CHUNK_IMAGES, Teacher

UNIT_IMAGES = 8 * CHUNK_IMAGES
"""Images that are computed, or cached, together."""
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class TeacherUse:
    """The part of a recipe that decides which teacher outputs a training needs."""

    network: TeacherConfig
    data: AnyData
    method: str
    readings: tuple[TeacherReading, ...]
    stages: tuple[str, ...]
    mixup: Mixup | None
    precision: Precision
    drawing: Drawing
    epochs: int

    @property
    def seed(self) -> int:
        """The training's seed, from which views are drawn."""
        return self.drawing.seed

    @classmethod
    def of(cls, recipe: Recipe) -> "TeacherUse":
        """Return the teacher's use in a recipe that has one teacher."""
        (network,) = recipe.teachers
        return cls(
            network=network,
            data=recipe.data,
            method=recipe.method.name,
            readings=recipe.method.teacher_readings,
            stages=recipe.method.needed_stages,
            mixup=recipe.mixup,
            precision=recipe.precision,
            drawing=recipe.drawing,
            epochs=recipe.epochs,
        )


class TeacherOutputs(Protocol):
    """What the training loop needs of a teacher.

    Images count once for each network.
    """

    @property
    def requested(self) -> int:
        """Images of this rank's batches, and those of its share of the validation split."""
        ...

    @property
    def checked(self) -> int:
        """Images computed again to compare them with the cache."""
        ...

    @property
    def off_reason(self) -> str | None:
        """The reason why nothing is cached (any more) although it was wanted, or None."""
        ...

    @property
    def computed(self) -> int:
        """Images that the network computed on this rank, without those checked."""
        ...

    @property
    def seconds(self) -> float:
        """Time spent on outputs, the teacher's views included; on a GPU without what is still running there."""
        ...

    @property
    def forward_seconds(self) -> float:
        """Time spent in the network itself."""
        ...

    def begin(self, epoch: int) -> None:
        """Prepare an epoch. Called before its first step, on every rank."""
        ...

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        """Return the outputs for this rank's views [N, C, H, W] of a batch."""
        ...

    def val_logits(self, *, counted: bool) -> Tensor:
        """Return logits [N, K] of the validation split, float32, on the CPU of every rank.

        `counted`: this rank's share of its images is counted as requested.
        """
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class LiveTeacher:
    """Outputs that the network computes for every batch."""

    def __init__(
        self, teacher: Teacher, use: TeacherUse, data: Dataset, device: torch.device, autocast: Autocast
    ) -> None:
        self.teacher, self.use, self.data, self.device, self.autocast = teacher, use, data, device, autocast
        self.requested = self.checked = 0
        self.off_reason: str | None = None
        self.seconds = 0.0

    @property
    def computed(self) -> int:
        return self.teacher.images

    @property
    def forward_seconds(self) -> float:
        return self.teacher.seconds

    @property
    def views_change(self) -> bool:
        """Whether an image has other pixels in another epoch or with another seed."""
        return self.use.mixup is not None or self.data.train.images.random_views

    def begin(self, epoch: int) -> None:
        """Do nothing."""

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.requested += len(images)
        started = time.perf_counter()
        with self.autocast():
            outputs = self.teacher(images)
        self.seconds += time.perf_counter() - started
        return outputs

    def close(self) -> None:
        """Do nothing."""

    def val_logits(self, *, counted: bool) -> Tensor:
        started = time.perf_counter()
        split = self.data.val
        own = distributed.share(torch.arange(len(split)))
        self.requested += len(own) if counted else 0
        computed = own if len(own) else torch.tensor([0])  # a rank without images joins the gather with no row
        rows = torch.cat([self.val_unit(indices) for indices in computed.split(UNIT_IMAGES)])
        logits = distributed.gather_rows(rows[: len(own)], len(split)).cpu()
        self.seconds += time.perf_counter() - started
        return logits

    def val_unit(self, indices: Tensor) -> Tensor:
        """Return logits [N, K] of validation images, computed in float32."""
        images = self.data.val.images.for_device(self.device)
        return self.teacher(as_floats(to_device(images.eval_view(indices), self.device))).logits

    def train_unit(self, indices: Tensor, epoch: int) -> Outputs:
        """Return outputs for the views of training images in an epoch, mixed if the recipe mixes image by image."""
        images, total = self.data.train.images.for_device(self.device), len(self.data.train)

        def views(wanted: Tensor) -> Tensor:
            return as_floats(to_device(images.train_view(wanted, self.use.seed, epoch), self.device))

        pixels = views(indices)
        if self.use.mixup is not None:
            pairs = pairing(self.use.mixup, indices, total, self.use.seed, epoch, step=0)
            pixels = mixed(pixels, views(pairs.partners), pairs.shares)
        with self.autocast():
            return self.teacher(pixels)
