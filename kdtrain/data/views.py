"""Views of images: torchvision's transforms on PIL images, seeded so that each view is a pure function.

C channels, H x W pixels, V views of one image for test-time augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdtrain.data.base import row_digests
from kdtrain.data.batch_transforms import BatchTransform, RandomResizedCropFlip
from kdtrain.runtime.rng import stream
from kdtrain.storage.cache import Cache

Transform = Callable[[Image.Image], Image.Image]

MAX_BYTES_ON_DEVICE = 1 << 30
"""The most that one split's images may take on a device."""


@dataclass(frozen=True)
class View:
    """A view is `transform(pre_transform(image))`.

    Attributes:
        pre_transform: The deterministic part. Its results are cached.
        transform: The rest. All random numbers are drawn here.
        batch_transform: `transform` for whole batches of pre-transformed images, or None.
    """

    pre_transform: Transform
    transform: Transform
    batch_transform: BatchTransform | None = None


@dataclass(frozen=True)
class MultiView:
    """Several views of one image: `transform(pre_transform(image))` is a sequence of images."""

    pre_transform: Transform
    transform: Callable[[Image.Image], Sequence[Image.Image]]


@dataclass(frozen=True)
class Views:
    """The views of a data set.

    Pixels stay bytes: every network normalizes them itself, so teacher and student share a view.

    Attributes:
        train: The view for training. It is the same object as `evaluation` if training has no random transform.
        evaluation: The view for validation and test.
        tta: The views for test-time augmentation, or None.
    """

    train: View
    evaluation: View
    tta: MultiView | None = None


class Source(Protocol):
    """The images of one split before their views."""

    def __len__(self) -> int: ...

    def image(self, index: int, pre_transform: Transform) -> Image.Image:
        """Return pre_transform(image `index`), RGB."""
        ...

    def select(self, indices: Tensor) -> "Source":
        """See `Images.select`."""
        ...

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        ...

    def name(self, index: int) -> str:
        """See `Images.name`."""
        ...

    def all_images(self, pre_transform: Transform) -> Sequence[Tensor] | Tensor | None:
        """Return all pre-transformed images, uint8 [C, H, W] each, or None if memory does not hold all of them."""
        ...

    def share(self, cache: Cache) -> str | None:
        """See `Images.share`."""
        ...

    def move_to_files(self, folder: Path) -> None:
        """See `Images.move_to_files`."""
        ...

    def check(self) -> None:
        """See `Images.check`."""
        ...


class ViewedImages:
    """The images of one split, whose views are made from one image after the other."""

    def __init__(self, source: Source, views: Views) -> None:
        self.source = source
        self.views = views
        self._for_device: dict[torch.device, ViewedImages] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "views": self.views, "_for_device": {}}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def batched(self) -> bool:
        """See `Images.batched`."""
        return False

    @property
    def random_views(self) -> bool:
        """See `Images.random_views`."""
        return self.views.train is not self.views.evaluation

    @property
    def transform_repr(self) -> str:
        """See `Images.transform_repr`."""
        views = (self.views.train, self.views.evaluation)
        return "; ".join(f"{transform_repr(view.pre_transform)}, {transform_repr(view.transform)}" for view in views)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """See `Images.train_view`."""
        view = self.views.train
        if view is self.views.evaluation:
            return self.eval_view(indices)
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for i in indices.tolist():
                # torchvision's transforms draw from this generator only, so a GPU's generators need no seed
                torch.default_generator.manual_seed(stream(seed, "view", epoch, i))
                pixels.append(pixels_of(view.transform(self.source.image(i, view.pre_transform))))
        return torch.stack(pixels)

    def eval_view(self, indices: Tensor) -> Tensor:
        """See `Images.eval_view`."""
        view = self.views.evaluation
        pixels = [pixels_of(view.transform(self.source.image(i, view.pre_transform))) for i in indices.tolist()]
        return torch.stack(pixels)

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """See `Images.tta_view`."""
        view = self.views.tta
        if view is None:
            return None
        images = [view.transform(self.source.image(i, view.pre_transform)) for i in indices.tolist()]
        return torch.stack([torch.stack([pixels_of(crop) for crop in crops]) for crops in images])

    def select(self, indices: Tensor) -> "ViewedImages":
        """See `Images.select`."""
        return ViewedImages(self.source.select(indices), self.views)

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        return self.source.digests()

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return self.source.name(index)

    def for_device(self, device: torch.device) -> "ViewedImages":
        """See `Images.for_device`. The images are copied to a device once for all trainings of this process."""
        if device.type == "mps":  # it has no float64, by which a batch's views equal those of single images
            device = torch.device("cpu")
        if device not in self._for_device:
            on_device = BatchedImages(self, device)
            self._for_device[device] = on_device if on_device.batched else self
        return self._for_device[device]

    def share(self, cache: Cache) -> str | None:
        """See `Images.share`."""
        return self.source.share(cache)

    def move_to_files(self, folder: Path) -> None:
        """See `Images.move_to_files`."""
        self.source.move_to_files(folder)

    def check(self) -> None:
        """See `Images.check`."""
        self.source.check()


class BatchedImages(ViewedImages):
    """Images held on a device, where the views of a whole batch are made at once, bit for bit those of `images`.

    Args:
        images: The images of a split.
        device: The device that holds their pre-transformed pixels.
    """

    def __init__(self, images: ViewedImages, device: torch.device) -> None:
        super().__init__(images.source, images.views)
        self.images = images
        self.device = device
        self._train, self._evaluation = (self._load(view) for view in (self.views.train, self.views.evaluation))

    @property
    def batched(self) -> bool:
        """See `Images.batched`."""
        return self._train is not None

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """See `Images.train_view`."""
        assert self._train is not None
        batch_transform, images = self._train
        # contiguous, as those of ViewedImages: the strides decide which algorithm a convolution takes
        return batch_transform.batch(images, indices, seed, epoch).contiguous()

    def eval_view(self, indices: Tensor) -> Tensor:
        """See `Images.eval_view`."""
        if self._evaluation is None:
            return super().eval_view(indices)
        batch_transform, images = self._evaluation
        return batch_transform.batch(images, indices, 0, 0).contiguous()

    def for_device(self, device: torch.device) -> ViewedImages:
        """See `Images.for_device`."""
        return self.images.for_device(device)

    def _load(self, view: View) -> tuple[BatchTransform, Sequence[Tensor] | Tensor] | None:
        """Return the view's batch transform and its images on the device, or None if it has to be made by image."""
        batch_transform = view.batch_transform
        if batch_transform is None or (self.device.type == "cpu" and not batch_transform.fast_on_cpu):
            return None
        images = self.source.all_images(view.pre_transform)
        if images is None or sum(image.numel() for image in images) > MAX_BYTES_ON_DEVICE:
            return None
        if isinstance(batch_transform, RandomResizedCropFlip):
            return batch_transform, [image.to(self.device) for image in images]
        return batch_transform, (images if isinstance(images, Tensor) else torch.stack(list(images))).to(self.device)


class ArraySource:
    """Images in one array: uint8 [N, H, W, 3]."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int, pre_transform: Transform) -> Image.Image:
        """See `Source.image`."""
        return pre_transform(Image.fromarray(self.pixels[index]))

    def select(self, indices: Tensor) -> "ArraySource":
        """See `Images.select`."""
        return ArraySource(self.pixels[indices.numpy()])

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        return row_digests(self.pixels)

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return f"image {index}"

    def all_images(self, pre_transform: Transform) -> Tensor | None:
        """See `Source.all_images`."""
        return torch.from_numpy(self.pixels).permute(0, 3, 1, 2) if pre_transform is unchanged else None

    def share(self, cache: Cache) -> str | None:
        """Do nothing: the pixels are in memory."""
        return None

    def move_to_files(self, folder: Path) -> None:
        """Do nothing: a loader process gets a copy of the array, if joined images need it at all."""

    def check(self) -> None:
        """Do nothing: the pixels were read when the data set was loaded."""


def transform_repr(transform: Transform) -> str:
    """Return the repr of a torchvision transform, or the name of a function (the data config has its parameters)."""
    return repr(transform) if isinstance(transform, torch.nn.Module) else getattr(transform, "__qualname__", "view")


def pixels_of(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image, uint8 [C, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def unchanged(image: Image.Image) -> Image.Image:
    """Return the image itself: the pre-transform or transform of a view that needs none."""
    return image


def batched_view(pre_transform: Transform, batch_transform: BatchTransform) -> View:
    """Return a view whose transform can also be made for whole batches."""
    return View(pre_transform, batch_transform.pil_transform(), batch_transform)


def ten_crop(resolution: int) -> MultiView:
    """Return torchvision's ten crops (V = 10): four corners and centre, each also flipped.

    The shorter side is resized to int(1.1 * resolution) pixels first.
    """
    from torchvision.transforms import v2

    return MultiView(v2.Resize(int(1.1 * resolution)), v2.TenCrop(resolution))


def resize_and_crop(shorter_side: int, resolution: int) -> View:
    """Return the view that resizes the shorter side (bilinear, antialiased), then takes the square in the centre."""
    from torchvision.transforms import v2

    return View(v2.Resize(shorter_side), v2.CenterCrop(resolution))
