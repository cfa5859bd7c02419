"""Multilayer perceptron: linear layers and ReLU on the pixels, with dropout and a limit of the weights (setup 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.source import Backbone, ImageShape


@dataclass(frozen=True)
class Mlp:
    """Encoder: images [N, C, H, W] -> the last hidden layer [N, hidden[-1]]. Head: one linear layer -> logits [N, K].

    Dropout (Srivastava et al. 2014) drops pixels with `input_dropout` and units of every hidden layer with `dropout`.
    """

    own_head: ClassVar[bool] = True
    normalization: ClassVar[Literal["none"]] = "none"
    smallest_side: ClassVar[int] = 1
    takes: ClassVar[tuple[str, ...]] = ("hidden", "input_dropout", "dropout", "max_norm")

    def backbone(self, image_shape: ImageShape, options: Mapping[str, Any]) -> Backbone:
        """Return the encoder and a function that makes the head; without options, the pixels are the features."""
        hidden: Sequence[int] = options.get("hidden") or ()
        dropout = options.get("dropout", 0.0)
        channels, height, width = image_shape
        widths = [channels * height * width, *hidden]
        layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(options.get("input_dropout", 0.0))]
        for inputs, units in pairwise(widths):
            layers += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(dropout)]
        return Backbone(nn.Sequential(*layers), widths[-1], channels=channels, head=nn.Linear)

    def imagenet_name(self) -> str:
        """Raise UserError: there are no such weights."""
        raise UserError("mlp has no ImageNet weights; write weights: null")

    def imagenet(self) -> dict[str, Tensor]:
        """Raise UserError: there are no such weights."""
        raise UserError(self.imagenet_name())
