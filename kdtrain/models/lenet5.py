"""LeNet5 as setup 3 writes it (after LeCun et al. 1998): two 3x3 convolutions, three linear layers, ReLU, max-pool."""

import torch
from torch import Tensor, nn

from kdtrain.errors import UserError


class LeNet5(nn.Module):
    """Images [N, C, H, W] -> logits [N, K]. The flattened size is measured, so any H, W >= 10 will do."""

    def __init__(
        self, image_shape: tuple[int, int, int], classes: int, maps: tuple[int, int], hidden: tuple[int, int]
    ) -> None:
        super().__init__()
        if min(image_shape[1:]) < 10:
            raise UserError(f"recipe.data.resolution: LeNet5 needs at least 10 px, got {min(image_shape[1:])}")
        self.encoder = nn.Sequential(
            nn.Conv2d(image_shape[0], maps[0], 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(maps[0], maps[1], 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            flat = self.encoder(torch.zeros(1, *image_shape)).shape[1]
        self.head = nn.Sequential(
            nn.Linear(flat, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU(),
            nn.Linear(hidden[1], classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


def lenet5_teacher(image_shape: tuple[int, int, int], classes: int) -> LeNet5:
    """81,194 parameters at 1x32x32 and 10 classes."""
    return LeNet5(image_shape, classes, (6, 16), (120, 84))


def lenet5_student(image_shape: tuple[int, int, int], classes: int) -> LeNet5:
    """46,164 parameters at 1x32x32 and 10 classes."""
    return LeNet5(image_shape, classes, (6, 12), (90, 64))
