"""LeNet5 as setup 3 writes it (after LeCun et al. 1998): two 3x3 convolutions, three linear layers, ReLU, max-pool."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.source import ImageShape, Parts


@dataclass(frozen=True)
class LeNet5:
    """Encoder: images [N, C, H, W] -> flat maps [N, 36 * maps[1]] at 32 px; head: three linear layers -> logits [N, K].

    Pooled before ReLU: the document's bits, since ReLU keeps the order of numbers, with a quarter of the work.
    The flattened size is measured, so any H, W >= 10 will do, and any number of channels.
    """

    maps: tuple[int, int]
    hidden: tuple[int, int]
    own_head: ClassVar[bool] = True
    normalization: ClassVar[Literal["none"]] = "none"

    def parts(self, image_shape: ImageShape) -> Parts:
        if min(image_shape[1:]) < 10:
            raise UserError(f"recipe.data.resolution: LeNet5 needs at least 10 px, got {min(image_shape[1:])}")
        encoder = nn.Sequential(
            nn.Conv2d(image_shape[0], self.maps[0], 3), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(self.maps[0], self.maps[1], 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            flat = encoder(torch.zeros(1, *image_shape)).shape[1]
        return Parts(encoder, flat, channels=image_shape[0], head=self.head)

    def head(self, features: int, classes: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(features, self.hidden[0]), nn.ReLU(), nn.Linear(self.hidden[0], self.hidden[1]), nn.ReLU(),
            nn.Linear(self.hidden[1], classes),
        )  # fmt: skip

    def imagenet_name(self) -> str:
        raise UserError("LeNet5 has no ImageNet weights; write weights: null")

    def imagenet(self) -> dict[str, Tensor]:
        raise UserError(self.imagenet_name())
