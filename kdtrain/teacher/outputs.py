"""What a training is told by its teacher: asked live here, or read (`cached_answers`) from what the trials of a node
have been told before.

Both say the same, on a CPU bit for bit: what a teacher says of an image depends on that image alone (CHUNK_IMAGES), and
a view is a pure function of (seed, epoch, image). N images, K classes.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset, as_floats
from kdtrain.data.mixup import mixed, pairing
from kdtrain.methods.base import Batch, Outputs
from kdtrain.runtime import distributed
from kdtrain.teacher.network import CHUNK_IMAGES, Teacher

UNIT_IMAGES = 8 * CHUNK_IMAGES
"""So many are asked about, or kept, together."""
Autocast = Callable[[], AbstractContextManager[object]]


class TeacherOutputs(Protocol):
    """What the loop asks."""

    asked: int
    """Images that this rank has asked about."""
    checked: int
    """Images that the network answered for once more here, to compare with what was read."""
    off: str | None
    """Why nothing is read or kept (any more), though that was wanted; None where it is, or was not."""

    @property
    def computed(self) -> int:
        """Images that the network itself answered for here, those checked left out."""
        ...

    @property
    def seconds(self) -> float:
        """Spent on answers, asked or read, views for the teacher among it; on a GPU without what still runs there."""
        ...

    @property
    def forward_seconds(self) -> float:
        """Spent in the network itself."""
        ...

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch, on every rank."""
        ...

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        """For this rank's views [N, C, H, W] of a batch."""
        ...

    def val_logits(self) -> Tensor:
        """[N, K] of the validation split, float32, on the CPU of every rank."""
        ...

    def close(self) -> None:
        """Nothing more will be asked."""
        ...


class LiveTeacher:
    """The network itself, asked for every batch."""

    def __init__(self, teacher: Teacher, recipe: Recipe, data: Dataset, device: torch.device, autocast: Autocast):
        self.teacher, self.recipe, self.data, self.device, self.autocast = teacher, recipe, data, device, autocast
        self.asked = self.checked = 0
        self.off: str | None = None
        self.seconds = 0.0

    @property
    def computed(self) -> int:
        return self.teacher.images

    @property
    def forward_seconds(self) -> float:
        return self.teacher.seconds

    def begin(self, epoch: int) -> None:
        """Nothing to prepare."""

    def of(self, images: Tensor, batch: Batch) -> Outputs:
        self.asked += len(images)
        started = time.perf_counter()
        with self.autocast():
            outputs = self.teacher(images)
        self.seconds += time.perf_counter() - started
        return outputs

    def close(self) -> None:
        """Nothing is held."""

    def val_logits(self) -> Tensor:
        started = time.perf_counter()
        split = self.data.val
        own = distributed.share(torch.arange(len(split)))
        asked = own if len(own) else torch.tensor([0])  # a rank without images gives no row
        rows = torch.cat([self.of_val(indices) for indices in asked.split(UNIT_IMAGES)])
        logits = distributed.gather_rows(rows[: len(own)], len(split)).cpu()
        self.seconds += time.perf_counter() - started
        return logits

    def of_val(self, indices: Tensor) -> Tensor:
        """Logits [n, K] of validation images, in float32 throughout."""
        images = self.data.val.images.for_device(self.device)
        return self.teacher(as_floats(images.eval_view(indices).to(self.device))).logits

    def of_train(self, indices: Tensor, epoch: int) -> Outputs:
        """For the views that training images have in an epoch, mixed where the recipe mixes by image."""
        images, seed, total = self.data.train.images.for_device(self.device), self.recipe.seed, len(self.data.train)

        def views(wanted: Tensor) -> Tensor:
            return as_floats(images.train_view(wanted, seed, epoch).to(self.device))

        pixels = views(indices)
        if self.recipe.mixup is not None:
            pairs = pairing(self.recipe.mixup, indices, total, seed, epoch, step=0)
            pixels = mixed(pixels, views(pairs.partners), pairs.shares)
        with self.autocast():
            return self.teacher(pixels)


def views_change(live: LiveTeacher) -> bool:
    """Whether training sees other pixels in another epoch, or with another seed."""
    return live.recipe.mixup is not None or live.data.train.images.random_views
