"""LeNet5 of setup 3 (after LeCun et al. 1998): two 3x3 convolutions, three linear layers, ReLU, max-pooling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.source import Backbone, ImageShape


@dataclass(frozen=True)
class LeNet5:
    """Encoder: images [N, C, H, W] -> features [N, 36 * maps[1]] at 32 px. Head: three linear layers -> logits [N, K].

    The number of features is measured, so any number of channels works, and any H and W of at least 10.
    """

    maps: tuple[int, int]
    hidden: tuple[int, int]
    own_head: ClassVar[bool] = True
    normalization: ClassVar[Literal["none"]] = "none"
    smallest_side: ClassVar[int] = 10
    takes: ClassVar[tuple[str, ...]] = ()

    def backbone(self, image_shape: ImageShape, options: Mapping[str, Any]) -> Backbone:
        """Return the encoder and a function that makes the head.

        Raises:
            UserError: if the images are smaller than 10 pixels.
        """
        if (side := min(image_shape[1:])) < self.smallest_side:
            raise UserError(f"recipe.data.resolution: LeNet5 needs at least {self.smallest_side} px, got {side}")
        # The reference implementation pools after ReLU. Pooling first gives the same bits, since ReLU keeps the order
        # of numbers, and a quarter of the work.
        encoder = nn.Sequential(
            nn.Conv2d(image_shape[0], self.maps[0], 3), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(self.maps[0], self.maps[1], 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            features = encoder(torch.zeros(1, *image_shape)).shape[1]
        return Backbone(encoder, features, channels=image_shape[0], head=self.head)

    def head(self, features: int, classes: int) -> nn.Sequential:
        """Return the three linear layers."""
        return nn.Sequential(
            nn.Linear(features, self.hidden[0]), nn.ReLU(), nn.Linear(self.hidden[0], self.hidden[1]), nn.ReLU(),
            nn.Linear(self.hidden[1], classes),
        )  # fmt: skip

    def imagenet_name(self) -> str:
        """Raise UserError: there are no such weights."""
        raise UserError("LeNet5 has no ImageNet weights; write weights: null")

    def imagenet(self) -> dict[str, Tensor]:
        """Raise UserError: there are no such weights."""
        raise UserError(self.imagenet_name())
