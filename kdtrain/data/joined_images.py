"""Images made of other images: their training views changed by a random affine map, or several of them in a row.

N images, n images of a batch, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.data.base import Images
from kdtrain.data.random_affine import RandomAffine, random_affine
from kdtrain.runtime.device import to_device
from kdtrain.storage.cache import Cache


class AffineImages:
    """Images whose training views are turned, scaled and shifted at random; all other views are those of `images`."""

    random_views = True

    def __init__(self, images: Images, augment: RandomAffine) -> None:
        self.images, self.augment = images, augment

    def __len__(self) -> int:
        return len(self.images)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """See `Images.train_view`."""
        views = self.images.train_view(indices, seed, epoch)
        return random_affine(self.augment, views, indices, seed, epoch)

    def eval_view(self, indices: Tensor) -> Tensor:
        """See `Images.eval_view`."""
        return self.images.eval_view(indices)

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """See `Images.tta_view`."""
        return self.images.tta_view(indices)

    @property
    def transform_repr(self) -> str:
        """See `Images.transform_repr`."""
        return f"{self.images.transform_repr}; {self.augment!r}"

    @property
    def batched(self) -> bool:
        """See `Images.batched`."""
        return self.images.batched

    def select(self, indices: Tensor) -> "AffineImages":
        """See `Images.select`."""
        return AffineImages(self.images.select(indices), self.augment)

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        return self.images.digests()

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return self.images.name(index)

    def for_device(self, device: torch.device) -> "AffineImages":
        """See `Images.for_device`."""
        return AffineImages(self.images.for_device(device), self.augment)

    def share(self, cache: Cache) -> str | None:
        """See `Images.share`."""
        return self.images.share(cache)

    def move_to_files(self, folder: Path) -> None:
        """See `Images.move_to_files`."""
        self.images.move_to_files(folder)

    def check(self) -> None:
        """See `Images.check`."""
        self.images.check()


class JoinedImages:
    """The images of several parts in a row, whose views have the same shape. Each part has its own transforms."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        self._ends = tuple(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """See `Images.train_view`."""
        return self._views(indices, lambda images, own: images.train_view(own, seed, epoch))

    def eval_view(self, indices: Tensor) -> Tensor:
        """See `Images.eval_view`."""
        return self._views(indices, lambda images, own: images.eval_view(own))

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """Return None: training images have no test-time augmentation."""
        return None

    @property
    def random_views(self) -> bool:
        """See `Images.random_views`."""
        return any(images.random_views for images in self.parts)

    @property
    def transform_repr(self) -> str:
        """See `Images.transform_repr`."""
        return " + ".join(f"{len(images)}: {images.transform_repr}" for images in self.parts)

    @property
    def batched(self) -> bool:
        """See `Images.batched`."""
        return all(images.batched for images in self.parts)

    def select(self, indices: Tensor) -> "JoinedImages":
        """See `Images.select`."""
        return JoinedImages([images.select(own) for images, _, own in self._shares(indices)])

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        return [digest for images in self.parts for digest in images.digests()]

    def name(self, index: int) -> str:
        """See `Images.name`."""
        ((images, _, own),) = self._shares(torch.tensor([index]))
        return images.name(int(own))

    def for_device(self, device: torch.device) -> "JoinedImages":
        """See `Images.for_device`. All parts make their views there, or all of them one after the other on the CPU."""
        there = JoinedImages([images.for_device(device) for images in self.parts])
        return there if there.batched else self  # parts that are held as batches cannot go to loader processes

    def share(self, cache: Cache) -> str | None:
        """See `Images.share`."""
        reasons = [images.share(cache) for images in self.parts]
        return next(filter(None, reasons), None)

    def move_to_files(self, folder: Path) -> None:
        """See `Images.move_to_files`."""
        for number, images in enumerate(self.parts):
            own = folder / f"part-{number}"
            own.mkdir()
            images.move_to_files(own)

    def check(self) -> None:
        """See `Images.check`."""
        for images in self.parts:
            images.check()

    def _shares(self, indices: Tensor) -> Iterator[tuple[Images, Tensor, Tensor]]:
        """Yield the parts that have any of the images, with the positions in `indices` and the images' own indices."""
        first = 0
        for images, end in zip(self.parts, self._ends, strict=True):
            positions = ((first <= indices) & (indices < end)).nonzero().flatten()
            if len(positions):
                yield images, positions, indices[positions] - first
            first = end

    def _views(self, indices: Tensor, view: Callable[[Images, Tensor], Tensor]) -> Tensor:
        made = [(positions, view(images, own)) for images, positions, own in self._shares(indices)]
        if len(made) == 1:
            return made[0][1]
        _, some = made[0]
        views = some.new_empty(len(indices), *some.shape[1:])
        for positions, own in made:
            views[to_device(positions, views.device)] = own
        return views
