"""Random views that can be made of one image by torchvision on PIL, or of a whole batch on a device, bit for bit alike.

Both draw the same numbers: torchvision's own parameters under the seed of (seed, epoch, image).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.data.pillow_resize import resized, resized_each
from kdtrain.runtime.rng import stream

FLIP = 0.5


@dataclass(frozen=True)
class Resized:
    """To a square of `resolution`, of images that are squares themselves. Nothing is drawn."""

    resolution: int

    on_cpu = True
    """Whether a batch is faster than one image after the other where there is no GPU."""

    def tail(self) -> Any:
        from torchvision.transforms import v2

        return v2.Resize(self.resolution)

    def batch(self, heads: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """uint8 [n, C, resolution, resolution] of images `indices` [n]; heads: uint8 [C, H, W] of every image."""
        assert isinstance(heads, Tensor)
        return resized(heads[indices.to(heads.device)], self.resolution)


@dataclass(frozen=True)
class CropFlip:
    """A square of `size`, cropped at random after `padding` black pixels at each side, resized to a square of
    `resolution` where one is given, flipped every other time. The images are all of one size."""

    size: int
    padding: int = 0
    resolution: int | None = None

    on_cpu = True

    @cached_property
    def _crop(self) -> Any:
        from torchvision.transforms import v2

        return v2.RandomCrop(self.size, padding=self.padding or None)

    def tail(self) -> Any:
        from torchvision.transforms import v2

        resize = [v2.Resize(self.resolution)] if self.resolution else []
        return v2.Compose([self._crop, *resize, v2.RandomHorizontalFlip(FLIP)])

    def batch(self, heads: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """uint8 [n, C, R, R] of images `indices` [n]; heads: uint8 [N, C, H, W]."""
        assert isinstance(heads, Tensor)
        # without data: torchvision asks for the size alone
        like = torch.empty(heads.shape[1:], dtype=torch.uint8, device="meta")
        drawn, flipped = _drawn(lambda _: self._crop.make_params([like]), indices, seed, epoch)
        tops, lefts = (torch.tensor([each[side] for each in drawn]) for side in ("top", "left"))
        cropped = _cropped(heads, indices, tops, lefts, self.size, self.padding)
        square = resized(cropped, self.resolution) if self.resolution else cropped
        return _flipped(square, flipped)


@dataclass(frozen=True)
class ResizedCropFlip:
    """torchvision's RandomResizedCrop to a square of `resolution`, flipped every other time."""

    resolution: int

    on_cpu = False

    @cached_property
    def _crop(self) -> Any:
        from torchvision.transforms import v2

        return v2.RandomResizedCrop(self.resolution)

    def tail(self) -> Any:
        from torchvision.transforms import v2

        return v2.Compose([self._crop, v2.RandomHorizontalFlip(FLIP)])

    def batch(self, heads: Sequence[Tensor] | Tensor, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """uint8 [n, C, R, R] of images `indices` [n]; heads: uint8 [C, H, W] of every image, of any sizes."""

        def draw(index: int) -> dict[str, int]:
            params: dict[str, int] = self._crop.make_params([torch.empty(heads[index].shape, device="meta")])
            return params

        drawn, flipped = _drawn(draw, indices, seed, epoch)
        heights, widths = (torch.tensor([each[side] for each in drawn]) for side in ("height", "width"))
        some = heads[0]
        boxes = torch.zeros(
            len(drawn), len(some), int(heights.max()), int(widths.max()), dtype=torch.uint8, device=some.device
        )
        for box, index, each in zip(boxes, indices.tolist(), drawn, strict=True):
            top, left, height, width = (each[name] for name in ("top", "left", "height", "width"))
            box[:, :height, :width] = heads[index][:, top : top + height, left : left + width]
        return _flipped(resized_each(boxes, heights, widths, self.resolution), flipped)


Batched = Resized | CropFlip | ResizedCropFlip


def _drawn(
    draw: Callable[[int], dict[str, int]], indices: Tensor, seed: int, epoch: int
) -> tuple[list[dict[str, int]], Tensor]:
    """What is drawn for each image, and then whether it is flipped, bool [n]."""
    drawn, flipped = [], []
    with torch.random.fork_rng(devices=[]):
        for index in indices.tolist():
            torch.default_generator.manual_seed(stream(seed, "view", epoch, index))
            drawn.append(draw(index))
            flipped.append(torch.rand(1).item() < FLIP)
    return drawn, torch.tensor(flipped)


def _cropped(heads_NCHW: Tensor, indices: Tensor, tops: Tensor, lefts: Tensor, size: int, padding: int) -> Tensor:
    """uint8 [n, C, size, size] of images `indices` [n], after so many black pixels at each side, from these corners."""
    which, tops, lefts = (each.to(heads_NCHW.device, non_blocking=True) for each in (indices, tops, lefts))
    if padding:
        heads_NCHW = functional.pad(heads_NCHW[which], (padding,) * 4)
        which = torch.arange(len(which), device=which.device)
    windows = heads_NCHW.unfold(2, size, 1).unfold(3, size, 1)  # of every corner; a view, nothing is copied
    return windows[which, :, tops, lefts]


def _flipped(pixels_NCHW: Tensor, flipped: Tensor) -> Tensor:
    """Left and right exchanged where `flipped` [N], in place."""
    which = flipped.nonzero().flatten().to(pixels_NCHW.device, non_blocking=True)
    pixels_NCHW[which] = pixels_NCHW[which].flip(3)
    return pixels_NCHW
