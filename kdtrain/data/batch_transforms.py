"""Transforms of training that are made by torchvision for one PIL image, or by torch for a whole batch, bit for bit.

Both draw the same numbers: torchvision's own parameters, under the seed of (seed, epoch, image).
N images of the split, n images of the batch, C channels, H x W pixels, R the resolution of a view.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.data.pillow_resize import resize, resize_each
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import stream

FLIP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Resize:
    """torchvision's Resize of square images to a square of `resolution` pixels. It draws no random numbers."""

    resolution: int

    fast_on_cpu = True
    """False if a CPU makes the views faster from one image after the other."""

    def pil_transform(self) -> Any:
        """Return torchvision's transform for one PIL image."""
        from torchvision.transforms import v2

        return v2.Resize(self.resolution)

    def batch(self, images: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the views of a batch.

        Args:
            images: All images of the split, uint8 [N, C, H, W].
            indices: The images of the batch, int64 [n].
            seed: The training's seed.
            epoch: The epoch, from 0.

        Returns:
            uint8 [n, C, R, R].
        """
        assert isinstance(images, Tensor)
        return resize(images[to_device(indices, images.device)], self.resolution)


@dataclass(frozen=True)
class RandomCropFlip:
    """torchvision's RandomCrop, Resize and RandomHorizontalFlip. All images have the same size.

    Attributes:
        size: The side of the random square, in pixels.
        padding: Black pixels added at each side before the crop.
        resolution: The side to which the square is resized, or None.
    """

    size: int
    padding: int = 0
    resolution: int | None = None

    fast_on_cpu = True

    @cached_property
    def _crop(self) -> Any:
        from torchvision.transforms import v2

        return v2.RandomCrop(self.size, padding=self.padding or None)

    def pil_transform(self) -> Any:
        """Return torchvision's transforms for one PIL image."""
        from torchvision.transforms import v2

        resized = [v2.Resize(self.resolution)] if self.resolution else []
        return v2.Compose([self._crop, *resized, v2.RandomHorizontalFlip(FLIP_PROBABILITY)])

    def batch(self, images: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the views of a batch, uint8 [n, C, R, R]; see `Resize.batch`."""
        assert isinstance(images, Tensor)
        # a tensor without data: torchvision reads only its size
        like = torch.empty(images.shape[1:], dtype=torch.uint8, device="meta")
        crops, flipped = _random_parameters(lambda _: self._crop.make_params([like]), indices, seed, epoch)
        tops, lefts = (torch.tensor([crop[side] for crop in crops]) for side in ("top", "left"))
        cropped = _crop_squares(images, indices, tops, lefts, self.size, self.padding)
        return _flip(resize(cropped, self.resolution) if self.resolution else cropped, flipped)


@dataclass(frozen=True)
class RandomResizedCropFlip:
    """torchvision's RandomResizedCrop to a square of `resolution` pixels and RandomHorizontalFlip."""

    resolution: int

    fast_on_cpu = False

    @cached_property
    def _crop(self) -> Any:
        from torchvision.transforms import v2

        return v2.RandomResizedCrop(self.resolution)

    def pil_transform(self) -> Any:
        """Return torchvision's transforms for one PIL image."""
        from torchvision.transforms import v2

        return v2.Compose([self._crop, v2.RandomHorizontalFlip(FLIP_PROBABILITY)])

    def batch(self, images: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the views of a batch, uint8 [n, C, R, R], from images uint8 [C, H, W] of any sizes."""

        def crop_of(index: int) -> dict[str, int]:
            crop: dict[str, int] = self._crop.make_params([torch.empty(images[index].shape, device="meta")])
            return crop

        crops, flipped = _random_parameters(crop_of, indices, seed, epoch)
        heights, widths = (torch.tensor([crop[side] for crop in crops]) for side in ("height", "width"))
        boxes = torch.zeros(
            len(crops), len(images[0]), int(heights.max()), int(widths.max()),
            dtype=torch.uint8, device=images[0].device,
        )  # fmt: skip
        for box, index, crop in zip(boxes, indices.tolist(), crops, strict=True):
            top, left, height, width = (crop[name] for name in ("top", "left", "height", "width"))
            box[:, :height, :width] = images[index][:, top : top + height, left : left + width]
        return _flip(resize_each(boxes, heights, widths, self.resolution), flipped)


BatchTransform = Resize | RandomCropFlip | RandomResizedCropFlip


def _random_parameters(
    crop_of: Callable[[int], dict[str, int]], indices: Tensor, seed: int, epoch: int
) -> tuple[list[dict[str, int]], Tensor]:
    """Return each image's crop and flip (bool [n]), drawn in torchvision's order under the image's own seed."""
    crops, flipped = [], []
    with torch.random.fork_rng(devices=[]):
        for index in indices.tolist():
            torch.default_generator.manual_seed(stream(seed, "view", epoch, index))
            crops.append(crop_of(index))
            flipped.append(torch.rand(1).item() < FLIP_PROBABILITY)
    return crops, torch.tensor(flipped)


def _crop_squares(images_NCHW: Tensor, indices: Tensor, tops: Tensor, lefts: Tensor, size: int, padding: int) -> Tensor:
    """Return the squares uint8 [n, C, size, size] at these corners [n] of the padded images."""
    which, tops, lefts = (to_device(each, images_NCHW.device) for each in (indices, tops, lefts))
    if padding:
        images_NCHW = functional.pad(images_NCHW[which], (padding,) * 4)
        which = torch.arange(len(which), device=which.device)
    windows = images_NCHW.unfold(2, size, 1).unfold(3, size, 1)  # a view of every possible square; copies nothing
    return windows[which, :, tops, lefts]


def _flip(pixels_NCHW: Tensor, flipped: Tensor) -> Tensor:
    """Exchange left and right of the images for which `flipped` (bool [N]) is True, in place."""
    which = to_device(flipped.nonzero().flatten(), pixels_NCHW.device)
    pixels_NCHW[which] = pixels_NCHW[which].flip(3)
    return pixels_NCHW
