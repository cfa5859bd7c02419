"""What a data set is to the rest: three splits of images with labels, and a fingerprint that names them.

N images, C channels, H x W pixels, K classes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdtrain.base_config import Config, Count, Seed
from kdtrain.data.pillow_resize import resized
from kdtrain.runtime.rng import generator
from kdtrain.storage.cache import Cache


class DataConfig(Config):
    """What every data set's config has: the seed draws its splits and what a limit keeps of them."""

    limit_per_class: Count | None = Field(None, description="at most so many of each class in each split")
    split_seed: Seed = 0

    @property
    def drawn(self) -> bool:
        """Whether training's views are drawn at random; what `Images.drawn` says once they are loaded."""
        return getattr(self, "augment", "none") != "none"


class Images(Protocol):
    """The pixels of one split. All views are pure functions: the same arguments give the same bits in any trial.

    Pixels travel as bytes; `as_floats` makes them what networks see, on whatever device they have come to.
    """

    def __len__(self) -> int: ...

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """What training sees of images `indices` [n] in an epoch: uint8 [n, C, H, W]."""
        ...

    def eval_view(self, indices: Tensor) -> Tensor:
        """What evaluation sees: uint8 [n, C, H, W]."""
        ...

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """The V views of each image that test-time augmentation averages over, uint8 [n, V, C, H, W].

        None where the data set has no test-time augmentation, whatever the indices.
        """
        ...

    @property
    def drawn(self) -> bool:
        """Whether training's views are drawn at random, so that another epoch or seed has others."""
        ...

    @property
    def described(self) -> str:
        """The transforms of training and evaluation, in full."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether training's views are taken in whole batches from memory, so that nothing is gained by processes."""
        ...

    def on(self, device: torch.device) -> "Images":
        """The same images, whose views come on `device` where they can be held or made there, else on the CPU."""
        ...

    def share(self, cache: Cache) -> str | None:
        """Before `check`: decoded images are read from the node's cache, where they are written by whoever decodes
        them first. Nothing to share where they are in memory anyway. The reason where it could not be done."""
        ...

    def check(self) -> None:
        """At the start of a training: reads ahead what fits into memory; UserError with the first corrupt file.

        Costs nothing when called again.
        """
        ...


def as_floats(pixels: Tensor) -> Tensor:
    """float32 in [0, 1] from uint8 of any shape, on its device: value / 255, rounded as IEEE 754 says everywhere."""
    # divided by a tensor: CUDA multiplies by the reciprocal of a number, which rounds differently
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


@dataclass(frozen=True)
class Split:
    """Images of one split with their labels, int64 [N]."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    written: str = ""
    """When its files were, as a digest: what a node keeps goes by it, since the fingerprint has their sizes alone.
    Empty where the fingerprint has every pixel."""

    def splits(self, *, test: bool = True) -> tuple[Split, ...]:
        """Training, validation and test; test=False: what a searched trial sees."""
        return (self.train, self.val, self.test) if test else (self.train, self.val)

    def share(self, cache: Cache, *, test: bool = True) -> str | None:
        """See Images.share."""
        reasons = [split.images.share(cache) for split in self.splits(test=test)]
        return next(filter(None, reasons), None)

    def summary(self) -> dict[str, object]:
        """For a trial's recipe.json: what was trained on, in numbers."""
        sizes = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        return {"name": self.name, "fingerprint": self.fingerprint, "classes": len(self.classes), **sizes}


class TensorImages:
    """A small set whole in memory: uint8 [N, C, H, W], no random view, so one epoch's view serves all."""

    at_once = True
    drawn = False
    described = "as loaded"

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self._elsewhere: dict[torch.device, TensorImages] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        return self.eval_view(indices)

    def eval_view(self, indices: Tensor) -> Tensor:
        # not pixels[indices], which takes one value after the other: 128 MNIST images in 0.22 ms in place of 0.08
        return self.pixels.index_select(0, indices.to(self.pixels.device, non_blocking=True))

    def tta_view(self, indices: Tensor) -> Tensor | None:
        return None

    def on(self, device: torch.device) -> "TensorImages":
        """Moved there once, for all trainings of this process."""
        if device == self.pixels.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = TensorImages(self.pixels.to(device))
        return self._elsewhere[device]

    def share(self, cache: Cache) -> str | None:
        """Nothing to do: the pixels are in memory."""
        return None

    def check(self) -> None:
        """Nothing to do: the pixels were read when the set was loaded."""


RESIZED_AT_ONCE = 4096


def resize_grey(images_NHW: np.ndarray, resolution: int) -> Tensor:
    """uint8 [N, H, W] -> uint8 [N, 1, resolution, resolution], as torchvision's Resize does on PIL images: bilinear."""
    pixels = torch.from_numpy(np.ascontiguousarray(images_NHW))[:, None]
    return torch.cat([resized(part, resolution) for part in pixels.split(RESIZED_AT_ONCE)])


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Sorted indices of `count` images with every class in proportion (largest remainders), drawn from a seed.

    Raises ValueError unless 0 <= count <= N.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise ValueError(f"cannot draw {count} of {total} images")
    per_class = torch.bincount(labels)
    quotas = [count * int(n) / total for n in per_class]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda c: (shares[c] - quotas[c], c))
    for c in by_remainder[: count - sum(shares)]:
        shares[c] += 1
    return torch.cat([_drawn(labels, c, share, seed, purpose) for c, share in enumerate(shares)]).sort().values


def limited(labels: Tensor, indices: Tensor, limit_per_class: int | None, seed: int) -> Tensor:
    """At most `limit_per_class` of `indices` for every class, drawn from a seed; all of them for None."""
    if limit_per_class is None:
        return indices
    own = labels[indices]
    kept = [_drawn(own, c, limit_per_class, seed, "limit") for c in range(int(labels.max()) + 1)]
    return indices[torch.cat(kept).sort().values]


def _drawn(labels: Tensor, label: int, count: int, seed: int, purpose: str) -> Tensor:
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=generator(seed, purpose, label))
    return members[order[:count]]


def remaining(total: int, *taken: Tensor) -> Tensor:
    """Sorted indices below `total` that are in none of `taken`."""
    free = torch.ones(total, dtype=torch.bool)
    for indices in taken:
        free[indices] = False
    return free.nonzero().flatten()


def fingerprint(name: str, content: bytes | np.ndarray, labels: Tensor, *splits: Tensor) -> str:
    """Names the images, the labels and the split indices: 32 hexadecimal digits."""
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for part in (content, labels.numpy(), *(split.numpy() for split in splits)):
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def tensor_dataset(
    name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], splits: tuple[Tensor, Tensor, Tensor]
) -> Dataset:
    """A Dataset held in memory from uint8 pixels [N, C, H, W] and the indices of train, val and test."""
    train, val, test = (Split(TensorImages(pixels[indices]), labels[indices]) for indices in splits)
    _, channels, height, width = pixels.shape
    mark = fingerprint(name, pixels.numpy(), labels, *splits)
    return Dataset(name, classes, (channels, height, width), train, val, test, mark)


def missing(name: str, looked_for: Path, how: str) -> str:
    """The sentence for a data set that is not there."""
    return (
        f"recipe.data: {name} is not there (looked for {looked_for}); {how}, "
        "or name the folder that holds it with --data DIR or KDTRAIN_DATA"
    )
