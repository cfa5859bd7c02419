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

from kdtrain.data.batch_transforms import Batched, ResizedCropFlip
from kdtrain.runtime.rng import stream
from kdtrain.storage.cache import Cache

Transform = Callable[[Image.Image], Image.Image]

HELD_BYTES = 1 << 30
"""Of one split on a device."""


@dataclass(frozen=True)
class View:
    """tail(head(image)). The head is deterministic, so its result can be kept; random draws are the tail's.

    batched: the same tail for whole batches of heads, where there is one.
    """

    head: Transform
    tail: Transform
    batched: Batched | None = None


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

    def heads(self, head: Transform) -> Sequence[Tensor] | Tensor | None:
        """head(image), uint8 [C, H, W], of all images; None where they are not kept in memory, or not all of them."""
        ...

    def share(self, cache: Cache) -> str | None:
        """See Images.share."""
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
        self._on: dict[torch.device, ViewedImages | HeldImages] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def drawn(self) -> bool:
        return self.views.train is not self.views.evaluation

    @property
    def described(self) -> str:
        views = (self.views.train, self.views.evaluation)
        return "; ".join(f"{described(view.head)}, {described(view.tail)}" for view in views)

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

    def on(self, device: torch.device) -> "ViewedImages | HeldImages":
        """Held there, once for all trainings of this process, where batches are faster and HELD_BYTES suffice."""
        if device not in self._on:
            held = HeldImages(self, device)
            self._on[device] = held if held.at_once else self
        return self._on[device]

    def share(self, cache: Cache) -> str | None:
        return self.source.share(cache)

    def check(self) -> None:
        self.source.check()


class HeldImages:
    """Images whose heads lie on a device, where whole batches of views are made, equal to those of `images`."""

    def __init__(self, images: ViewedImages, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._train, self._evaluation = (self._batches(view) for view in (images.views.train, images.views.evaluation))

    @property
    def at_once(self) -> bool:
        return self._train is not None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def drawn(self) -> bool:
        return self.images.drawn

    @property
    def described(self) -> str:
        return self.images.described

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        assert self._train is not None
        batched, heads = self._train
        return batched.batch(heads, indices, seed, epoch).contiguous()  # strides choose a convolution's algorithm

    def eval_view(self, indices: Tensor) -> Tensor:
        if self._evaluation is None:
            return self.images.eval_view(indices)
        batched, heads = self._evaluation
        return batched.batch(heads, indices, 0, 0).contiguous()

    def tta_view(self, indices: Tensor) -> Tensor | None:
        return self.images.tta_view(indices)

    def on(self, device: torch.device) -> "ViewedImages | HeldImages":
        return self.images.on(device)

    def share(self, cache: Cache) -> str | None:
        return self.images.share(cache)

    def check(self) -> None:
        self.images.check()

    def _batches(self, view: View) -> tuple[Batched, Sequence[Tensor] | Tensor] | None:
        batched = view.batched
        if batched is None or (self.device.type == "cpu" and not batched.on_cpu):
            return None
        heads = self.images.source.heads(view.head)
        if heads is None or sum(head.numel() for head in heads) > HELD_BYTES:
            return None
        if isinstance(batched, ResizedCropFlip):
            return batched, [head.to(self.device) for head in heads]
        return batched, (heads if isinstance(heads, Tensor) else torch.stack(list(heads))).to(self.device)


class ArraySource:
    """Images whole in memory: uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int, head: Transform) -> Image.Image:
        return head(Image.fromarray(self.pixels[index]))

    def heads(self, head: Transform) -> Tensor | None:
        return torch.from_numpy(self.pixels).permute(0, 3, 1, 2) if head is unchanged else None

    def share(self, cache: Cache) -> str | None:
        """Nothing to do: the pixels are in memory."""
        return None

    def check(self) -> None:
        """Nothing to do: the pixels were read when the set was loaded."""


def described(transform: Transform) -> str:
    """A transform of torchvision with its parameters; of a function its name: its parameters are the data config's."""
    return repr(transform) if isinstance(transform, torch.nn.Module) else getattr(transform, "__qualname__", "view")


def pixels_of(image: Image.Image) -> Tensor:
    """uint8 [C, H, W] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def unchanged(image: Image.Image) -> Image.Image:
    """The head or tail of a view that needs none."""
    return image


def batched_view(head: Transform, batched: Batched) -> View:
    """A view whose tail can be made in batches."""
    return View(head, batched.tail(), batched)


def ten_crop(resolution: int) -> MultiView:
    """Shorter side to int(1.1 * resolution), then the four corners and the centre, each also flipped: V = 10."""
    from torchvision.transforms import v2

    return MultiView(v2.Resize(int(1.1 * resolution)), v2.TenCrop(resolution))


def resize_and_crop(shorter_side: int, resolution: int) -> View:
    """Shorter side resized (bilinear, antialiased), then the square in the centre."""
    from torchvision.transforms import v2

    return View(v2.Resize(shorter_side), v2.CenterCrop(resolution))
