"""What networks see of an image: torchvision's own transforms on PIL images, made pure functions by seeding.

C channels, H x W pixels, V views of one image for test-time augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdtrain.streams import stream

Transform = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class View:
    """tail(head(image)). The head is deterministic, so its result can be kept; random draws are the tail's."""

    head: Transform
    tail: Transform


@dataclass(frozen=True)
class MultiView:
    """Several views of one image after the same head."""

    head: Transform
    tail: Callable[[Image.Image], Sequence[Image.Image]]


@dataclass(frozen=True)
class Views:
    """A data set's views. Where training sees what evaluation sees, `train` is the same object as `evaluation`.

    Pixels stay bytes, in [0, 1] once they are floats: every network normalises them itself, so teacher and student
    share a view.
    """

    train: View
    evaluation: View
    tta: MultiView | None = None


class Source(Protocol):
    """Where the images of a split come from."""

    def __len__(self) -> int: ...

    def image(self, index: int, head: Transform) -> Image.Image:
        """head(image `index`), RGB."""
        ...

    def check(self) -> None:
        """UserError with the first image that cannot be read; see Images.check."""
        ...


class ViewedImages:
    """The Images of a split: a source seen through views."""

    at_once = False

    def __init__(self, source: Source, views: Views) -> None:
        self.source = source
        self.views = views

    def __len__(self) -> int:
        return len(self.source)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        view = self.views.train
        if view is self.views.evaluation:
            return self.eval_view(indices)
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for i in indices.tolist():
                # all of torchvision's transforms draw from this generator; a GPU's is nobody's business here
                torch.default_generator.manual_seed(stream(seed, "view", epoch, i))
                pixels.append(pixels_of(view.tail(self.source.image(i, view.head))))
        return torch.stack(pixels)

    def eval_view(self, indices: Tensor) -> Tensor:
        view = self.views.evaluation
        pixels = [pixels_of(view.tail(self.source.image(i, view.head))) for i in indices.tolist()]
        return torch.stack(pixels)

    def tta_view(self, indices: Tensor) -> Tensor | None:
        view = self.views.tta
        if view is None:
            return None
        images = [view.tail(self.source.image(i, view.head)) for i in indices.tolist()]
        return torch.stack([torch.stack([pixels_of(crop) for crop in crops]) for crops in images])

    def on(self, device: torch.device) -> "ViewedImages":
        return self

    def check(self) -> None:
        self.source.check()


class ArraySource:
    """Images whole in memory: uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int, head: Transform) -> Image.Image:
        return head(Image.fromarray(self.pixels[index]))

    def check(self) -> None:
        """Nothing to do: the pixels were read when the set was loaded."""


def pixels_of(image: Image.Image) -> Tensor:
    """uint8 [C, H, W] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def unchanged(image: Image.Image) -> Image.Image:
    """The head or tail of a view that needs none."""
    return image


def ten_crop(resolution: int) -> MultiView:
    """Shorter side to int(1.1 * resolution), then the four corners and the centre, each also flipped: V = 10."""
    from torchvision.transforms import v2

    return MultiView(v2.Resize(int(1.1 * resolution)), v2.TenCrop(resolution))


def resize_and_crop(shorter_side: int, resolution: int) -> View:
    """Shorter side resized (bilinear, antialiased), then the square in the centre."""
    from torchvision.transforms import v2

    return View(v2.Resize(shorter_side), v2.CenterCrop(resolution))
