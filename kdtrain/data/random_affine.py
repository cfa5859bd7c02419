"""Random rotation, scale and shift of training views, for whole batches and with equal bits on every device.

The position of each pixel is drawn and computed on the CPU in float64, then rounded to whole units of 2^-10 pixel. What
is left is arithmetic of whole numbers, which no device, batch size or order of summation rounds differently.
n images of a batch, C channels, H x W pixels.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor
from torch.nn import functional

from kdtrain.base_config import Config
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import uniform

BITS = 10
"""A position has this many bits after the point; a byte times two weights of so many bits fits into int32."""
ONE = 1 << BITS
CHUNK_PIXELS = 1 << 22
"""Pixels that are computed at a time: the whole numbers of so many take less than 300 MiB."""


class RandomAffine(Config):
    """Each training view is turned, scaled and shifted at random, as by torchvision's RandomAffine.

    The view is turned about its centre by an angle uniform in [-rotate_degrees, rotate_degrees], scaled by a factor
    uniform in [1 - scale, 1 + scale], and shifted in each direction by a share of its side uniform in [-translate,
    translate]. Pixels are interpolated bilinearly; what comes from outside of the view is black.
    """

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[float, Field(ge=0, le=0.9)] = 0.0

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.rotate_degrees or self.translate or self.scale):
            raise ValueError("must have rotate_degrees, translate or scale above 0; without any, remove augment")
        return self


class StandardAndAffine(RandomAffine):
    """The map after the data set's standard random transforms, or instead of them."""

    also: Literal["standard", "none"] = Field("standard", description="The random transforms before the map.")


class CropFlipAndAffine(RandomAffine):
    """The map after a random crop and flip, or instead of them."""

    also: Literal["none", "crop_flip"] = Field("none", description="The random transforms before the map.")


def _word_or_map(written: Any) -> Literal["map", "word"]:
    """Return the tag of what is written as `augment`, so that only the mistakes of this kind are reported."""
    return "map" if isinstance(written, Mapping | RandomAffine) else "word"


StandardAugment = Annotated[
    Annotated[Literal["standard", "none"], Tag("word")] | Annotated[StandardAndAffine, Tag("map")],
    Discriminator(_word_or_map),
]
CropFlipAugment = Annotated[
    Annotated[Literal["none", "crop_flip"], Tag("word")] | Annotated[CropFlipAndAffine, Tag("map")],
    Discriminator(_word_or_map),
]


def word_of(augment: str | StandardAndAffine | CropFlipAndAffine) -> str:
    """Return the word for the random transforms before the map."""
    return augment if isinstance(augment, str) else augment.also


def random_affine(drawn: RandomAffine, views_nCHW: Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return views that are turned, scaled and shifted by what (seed, epoch, image) draws.

    Args:
        drawn: The ranges of the random numbers.
        views_nCHW: The views of a batch, uint8 [n, C, H, W].
        indices: The images of the batch, int64 [n].
        seed: The training's seed.
        epoch: The epoch, from 0.

    Returns:
        uint8 [n, C, H, W], contiguous.
    """
    channels, height, width = views_nCHW.shape[1:]
    maps_n4 = torch.tensor([_map_of(drawn, seed, epoch, index) for index in indices.tolist()], dtype=torch.float64)
    rows, columns = _positions(maps_n4, height, width)
    rows, columns = (to_device(each, views_nCHW.device) for each in (rows, columns))
    chunk = max(1, CHUNK_PIXELS // (channels * height * width))
    parts = zip(*(each.split(chunk) for each in (views_nCHW, rows, columns)), strict=True)
    return torch.cat([_interpolated(*part) for part in parts])


def _map_of(drawn: RandomAffine, seed: int, epoch: int, index: int) -> tuple[float, float, float, float]:
    """Return (cos a / s, sin a / s, x, y) of an image: angle a, scale s, shift (x, y) in shares of the sides."""
    angle, factor, x, y = (2 * number - 1 for number in uniform(4, seed, "affine", epoch, index))
    angle, factor = math.radians(drawn.rotate_degrees * angle), 1 + drawn.scale * factor
    return math.cos(angle) / factor, math.sin(angle) / factor, drawn.translate * x, drawn.translate * y


def _positions(maps_n4: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the two summands of the positions from which pixels are taken, in units of 1 / ONE pixel.

    The position is (x, y) = R^-1 ((column, row) - centre - shift) / s + centre. The first result depends on the pixel's
    row, int32 [n, 2, H, 1], the second on its column, int32 [n, 2, 1, W]; place 0 of their second dimension is x.
    """
    cos, sin, x, y = maps_n4.T[:, :, None]
    middle, centre = (height - 1) / 2, (width - 1) / 2
    down = torch.arange(height, dtype=torch.float64) - middle - y * height
    right = torch.arange(width, dtype=torch.float64) - centre - x * width
    rows = torch.stack([sin * down + centre, cos * down + middle], 1)
    columns = torch.stack([cos * right, -sin * right], 1)
    return (rows * ONE).round().int()[:, :, :, None], (columns * ONE).round().int()[:, :, None]


def _interpolated(views_nCHW: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the views at these positions, see `_positions`; black surrounds them."""
    count, channels, height, width = views_nCHW.shape
    x, y = (rows + columns + ONE).unbind(1)  # positions in an image with a border: one pixel before, two behind
    x, y = x.clamp_(0, (width + 1) * ONE), y.clamp_(0, (height + 1) * ONE)  # further outside it is as black
    pixels = functional.pad(views_nCHW, (1, 2, 1, 2)).view(count, channels, -1)
    stride = width + 3
    corner = ((y >> BITS) * stride).add_(x >> BITS).view(count, 1, -1).long().expand(-1, channels, -1)
    across, down = ((each & (ONE - 1)).view(count, 1, -1) for each in (x, y))

    def between(start: int) -> Tensor:
        left, right = (pixels[:, :, place:].gather(2, corner).int() for place in (start, start + 1))
        return right.sub_(left).mul_(across).add_(left << BITS)

    upper, lower = between(0), between(stride)
    value = lower.sub_(upper).mul_(down).add_(upper << BITS).add_(1 << (2 * BITS - 1))
    return (value >> (2 * BITS)).to(torch.uint8).view(views_nCHW.shape)
