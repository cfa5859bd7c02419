"""The interface of a data set: three splits of images with labels, and a fingerprint of all of them.

N images, n images of a batch, C channels, H x W pixels, K classes, V views of an image.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from kdtrain.base_config import Config, Count, NonNegativeInt, Seed
from kdtrain.data.pillow_resize import resize
from kdtrain.data.random_affine import RandomAffine
from kdtrain.errors import shortened
from kdtrain.runtime.device import to_device
from kdtrain.runtime.rng import generator
from kdtrain.storage.cache import Cache


class Part(Config):
    """One of `of` disjoint parts of the training images, with each class in proportion; together they are all."""

    of: Annotated[int, Field(ge=2)]
    index: NonNegativeInt = Field(description="from 0")

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.index >= self.of:
            raise ValueError(f"index must be < {self.of}, the number of parts, got {self.index}")
        return self


def part_problem(part: Part, images: int, classes: int) -> str | None:
    """Return what is wrong with a part of so many images that has fewer than there are classes; else None.

    Such a part could not have an image of each class, and a training on a handful of images is a mistake.
    """
    most = images // classes
    if part.of <= most:
        return None
    return (
        f"must be <= {most}, or a part of the {images} training images has fewer than {classes} classes; got {part.of}"
    )


def _as_names(written: Any) -> Any:
    """Return the names of classes in one order, each once; a class such as 3 may be written as a number."""
    if not isinstance(written, list | tuple):
        return written
    for name in written:
        if type(name) not in (str, int):
            raise ValueError(f"must have names of classes, text or whole numbers, got {shortened(str(name))}")
    return tuple(sorted({str(name) for name in written}))


class DataConfig(Config):
    """The options of every data set. `split_seed` draws its splits and every sample of images or labels.

    `limit_per_class`, `part`, `exclude_classes` and `labelled_*` apply in this order; `limit_per_class` concerns all
    splits, the others only the training split. See `training_split.prepared`.
    """

    newer: ClassVar = dict.fromkeys(
        ("part", "exclude_classes", "labelled_per_class", "labelled_fraction", "augment", "transfer")
    )

    limit_per_class: Count | None = Field(None, description="at most this many images of each class in each split")
    split_seed: Seed = 0
    name: str
    part: Part | None = Field(None, description="One of several disjoint, stratified parts of the training images.")
    exclude_classes: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        BeforeValidator(_as_names, json_schema_input_type=Annotated[list[str | int], Field(min_length=1)] | None),
        Field(description="Classes without a training image; validation and test keep theirs."),
    ] = None
    labelled_per_class: Count | None = Field(
        None, description="Number of training images of each class that keep their label; the other labels are hidden."
    )
    labelled_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the training images that keep their label, in each class; the others are hidden."
    )
    augment: Annotated[
        RandomAffine | None,
        BeforeValidator(
            lambda written: None if written == "none" else written,
            json_schema_input_type=Literal["none"] | RandomAffine | None,
        ),
        Field(description="Training views are turned, scaled and shifted at random as well."),
    ] = None
    transfer: "Transfer | None" = Field(  # Transfer: the registry completes the class with its data sets
        None, description="A data set whose training images join the training split without labels."
    )

    channels: ClassVar[int] = 3
    always_random: ClassVar[bool] = False
    """True if training has random transforms without `augment`."""

    @property
    def train_images(self) -> int | None:
        """The size of the training split without the options above; None if it is not known before loading."""
        return None

    @property
    def class_count(self) -> int | None:
        """The number of classes, or None if it is not known before loading."""
        return None

    def load(self, root: Path) -> "Dataset":
        """Return the data set below `root` without the options of the training split; see `training_split.prepared`.

        Raises:
            UserError: Its files are absent or damaged.
        """
        raise NotImplementedError

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a view."""
        side: int = self.resolution  # type: ignore[attr-defined]  # every data set has this field, with its own bounds
        return self.channels, side, side

    @property
    def random_views(self) -> bool:
        """True if training has random transforms. It equals `Images.random_views` of the loaded training split."""
        augment: object = self.augment  # of some data sets it can be a word
        own = self.always_random or augment not in (None, "none")
        return own or (self.transfer is not None and self.transfer.random_views)

    @property
    def training_images(self) -> int | None:
        """The most images of the training split, or None if that is not known before loading."""
        images = self._images_before_part
        if images is None or self.exclude_classes is not None:
            return None
        if self.part is not None:
            images = -((self.part.index - images) // self.part.of)
        if self.transfer is None:
            return images
        more = self.transfer.training_images
        return None if more is None else images + more

    @property
    def _images_before_part(self) -> int | None:
        images = self.train_images
        if images is not None and self.limit_per_class is not None and self.class_count is not None:
            images = min(images, self.limit_per_class * self.class_count)
        return images

    @property
    def hides_labels(self) -> bool | None:
        """True if training images lack their label, False if none does; None if that is not known before loading."""
        if any(option is not None for option in (self.labelled_per_class, self.labelled_fraction, self.transfer)):
            return True
        return None if self.train_images is None else False

    @model_validator(mode="before")
    @classmethod
    def _no_word_for_always_random(cls, written: Any) -> Any:
        if cls.always_random and isinstance(written, dict) and written.get("augment") == "none":
            raise ValueError("augment cannot be none: training crops at random in any case; remove it")
        return written

    @model_validator(mode="after")
    def _labels_are_hidden_in_one_way(self) -> Self:
        if self.labelled_per_class is not None and self.labelled_fraction is not None:
            raise ValueError("labelled_fraction cannot be combined with labelled_per_class; remove one of them")
        return self

    @model_validator(mode="after")
    def _part_has_images(self) -> Self:
        images, classes = self._images_before_part, self.class_count
        if self.part is None or images is None or classes is None:
            return self
        if problem := part_problem(self.part, images, classes):
            raise ValueError(f"part.of {problem}")
        return self

    @model_validator(mode="after")
    def _transfer_fits(self) -> Self:
        if self.transfer is None:
            return self
        for key in ("transfer", "labelled_per_class", "labelled_fraction"):
            if getattr(self.transfer, key) is not None:
                why = "joins without labels" if key != "transfer" else "has no transfer of its own"
                raise ValueError(f"transfer.{key} cannot be written: a data set that is transferred {why}; remove it")
        (channels, _, side), (own_channels, _, own_side) = self.transfer.image_shape, self.image_shape
        if channels != own_channels:
            raise ValueError(
                f"transfer.name must be a data set with {own_channels} channel{'s' * (own_channels > 1)}, as"
                f" {self.name}, got {self.transfer.name} with {channels}"
            )
        if side != own_side:
            raise ValueError(f"transfer.resolution must be that of the data set, {own_side}, got {side}")
        return self


if TYPE_CHECKING:
    Transfer = DataConfig


class Images(Protocol):
    """The images of one split, seen as views. All views are pure functions: equal arguments give equal bits.

    Views are bytes; `as_floats` turns them into the networks' input on any device.
    """

    def __len__(self) -> int: ...

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """Return the views that training uses.

        Args:
            indices: Image indices, int64 [n].
            seed: The training's seed.
            epoch: The epoch, from 0.

        Returns:
            uint8 [n, C, H, W].
        """
        ...

    def eval_view(self, indices: Tensor) -> Tensor:
        """Return the views that evaluation uses, uint8 [n, C, H, W], of images int64 [n]."""
        ...

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """Return the views that test-time augmentation averages over, uint8 [n, V, C, H, W], of images int64 [n].

        None, for any indices, if the data set has no test-time augmentation.
        """
        ...

    @property
    def random_views(self) -> bool:
        """True if training has random transforms, so its views depend on seed and epoch."""
        ...

    @property
    def transform_repr(self) -> str:
        """The transforms of training and evaluation with all parameters."""
        ...

    @property
    def batched(self) -> bool:
        """True if training's views are made from memory for a whole batch at once, so loader processes gain nothing."""
        ...

    def select(self, indices: Tensor) -> "Images":
        """Return some of these images, int64 [n] and sorted, as images of their own; nothing is read for the others."""
        ...

    def digests(self) -> list[str]:
        """Return a digest of each image's content: the bytes of its file, or its pixels.

        Raises:
            UserError: A file cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Return what messages call an image: the path of its file below the data set's folder, or its number."""
        ...

    def for_device(self, device: torch.device) -> "Images":
        """Return the same images with views on `device` if they can be held or made there, else on the CPU."""
        ...

    def share(self, cache: Cache) -> str | None:
        """Read the decoded images from the node's cache; the first process that needs one decodes and writes it.

        Call it before `check`. It does nothing if the images are in memory anyway.

        Returns:
            None, or the reason if the images cannot be shared.
        """
        ...

    def move_to_files(self, folder: Path) -> None:
        """Move decoded images from memory to memory-mapped files in `folder`, unless they are in the cache's files.

        Then a pickle of the images holds only paths and transforms, and loader processes share the decoded images.
        """
        ...

    def check(self) -> None:
        """Read all images; decoded ones are kept if they fit into memory. A second call does nothing.

        Raises:
            UserError: An image is damaged; the first one is named.
        """
        ...


def as_floats(pixels: Tensor) -> Tensor:
    """Return value / 255, float32 in [0, 1], of uint8 pixels of any shape; the bits are equal on every device."""
    # a tensor as divisor: CUDA multiplies by the reciprocal of a number, which rounds differently
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


HIDDEN = -1
"""The label of a training image whose label is hidden, or that has none."""


@dataclass(frozen=True)
class Split:
    """The images of one split and their labels, int64 [N]; HIDDEN for an unlabelled image of the training split."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> Tensor:
        """The indices of the labelled images, int64."""
        return (self.labels != HIDDEN).nonzero().flatten()


@dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
        name: The name in a recipe.
        classes: The names of the K classes.
        image_shape: (C, H, W) of a view.
        train: The training split.
        val: The validation split.
        test: The test split.
        notes: Sentences about what the reader has left out or decided; `data_notes` has these and others.
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the content and the label of every image, in the order of the splits."""
        digest = hashlib.blake2b(f"{self.name} {len(self.classes)}".encode(), digest_size=16)
        for split in self.splits():
            for part in (" ".join(split.images.digests()).encode(), split.labels.numpy().tobytes()):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        return digest.hexdigest()

    def splits(self, *, test: bool = True) -> tuple[Split, ...]:
        """Return training, validation and, unless test=False (a trial of the search), test split."""
        return (self.train, self.val, self.test) if test else (self.train, self.val)

    def share(self, cache: Cache, *, test: bool = True) -> str | None:
        """Share the images of all splits; return the first reason why that is not possible (see `Images.share`)."""
        reasons = [split.images.share(cache) for split in self.splits(test=test)]
        return next(filter(None, reasons), None)

    def summary(self) -> dict[str, object]:
        """Return name, fingerprint and sizes for a trial's recipe.json, see `trials.records.DataSummary`."""
        sizes: dict[str, object] = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        seen = torch.bincount(self.train.labels[self.train.labelled], minlength=len(self.classes))
        if unseen := (seen == 0).nonzero().flatten().tolist():
            sizes["unseen_classes"] = unseen
        counts = torch.bincount(self.val.labels)
        return {
            "name": self.name, "fingerprint": self.fingerprint, "classes": len(self.classes), **sizes,
            "labels": len(self.train.labelled), "val_classes": int((counts > 0).sum()),
            "val_most_frequent": int(counts.max()),
        }  # fmt: skip


class TensorImages:
    """A small split in memory, uint8 [N, C, H, W], without random transforms: all views are the images themselves."""

    batched = True
    random_views = False
    transform_repr = "as loaded"

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self._on_device: dict[torch.device, TensorImages] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """See `Images.train_view`."""
        return self.eval_view(indices)

    def eval_view(self, indices: Tensor) -> Tensor:
        """See `Images.eval_view`."""
        # pixels[indices] takes 0.22 ms for 128 MNIST images, index_select 0.08 ms
        return self.pixels.index_select(0, to_device(indices, self.pixels.device))

    def tta_view(self, indices: Tensor) -> Tensor | None:
        """Return None: there is no test-time augmentation."""
        return None

    def select(self, indices: Tensor) -> "TensorImages":
        """See `Images.select`."""
        return TensorImages(self.pixels[indices])

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        return row_digests(self.pixels.cpu().numpy())

    def name(self, index: int) -> str:
        """See `Images.name`."""
        return f"image {index}"

    def for_device(self, device: torch.device) -> "TensorImages":
        """See `Images.for_device`. The images are copied to a device once for all trainings of this process."""
        if device == self.pixels.device:
            return self
        if device not in self._on_device:
            self._on_device[device] = TensorImages(self.pixels.to(device))
        return self._on_device[device]

    def share(self, cache: Cache) -> str | None:
        """Do nothing: the pixels are in memory."""
        return None

    def move_to_files(self, folder: Path) -> None:
        """Do nothing: loader processes make no views of these images."""

    def check(self) -> None:
        """Do nothing: the pixels were read when the data set was loaded."""


RESIZE_CHUNK = 4096
"""Images that are resized at a time."""


def resize_grey(images_NHW: np.ndarray, resolution: int) -> Tensor:
    """Return grey images uint8 [N, H, W] as squares [N, 1, R, R], bit for bit as torchvision resizes PIL images."""
    pixels = torch.from_numpy(np.ascontiguousarray(images_NHW))[:, None]
    return torch.cat([resize(part, resolution) for part in pixels.split(RESIZE_CHUNK)])


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Return the sorted indices of a random sample with every class in proportion (largest remainders).

    Args:
        labels: int64 [N].
        count: Images in the sample, 0 to N.
        seed: The data's split seed.
        purpose: The name of the random stream.

    Returns:
        int64 [count].

    Raises:
        ValueError: `count` is out of range.
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
    return torch.cat([sampled(labels, c, share, seed, purpose) for c, share in enumerate(shares)]).sort().values


def limited(labels: Tensor, indices: Tensor, limit_per_class: int | None, seed: int) -> Tensor:
    """Return a random sample of a split's `indices` with at most `limit_per_class` images of each class; None: all.

    The images without a label are a class too.
    """
    if limit_per_class is None:
        return indices
    own = labels[indices]
    kept = [sampled(own, c, limit_per_class, seed, "limit") for c in own.unique().tolist()]
    return indices[torch.cat(kept).sort().values]


def sampled(labels: Tensor, label: int, count: int | None, seed: int, purpose: str) -> Tensor:
    """Return the indices of `count` (or all) images with this label in random order; fewer if there are fewer."""
    members = (labels == label).nonzero().flatten()
    order = torch.randperm(len(members), generator=generator(seed, purpose, label))
    return members[order[:count]]


def remaining(total: int, *taken: Tensor) -> Tensor:
    """Return the sorted indices below `total` that are in none of `taken`."""
    free = torch.ones(total, dtype=torch.bool)
    for indices in taken:
        free[indices] = False
    return free.nonzero().flatten()


def row_digests(rows: np.ndarray) -> list[str]:
    """Return a digest of 32 hexadecimal digits of each row of an array [N, ...]."""
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows]


def tensor_dataset(
    name: str, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], splits: tuple[Tensor, Tensor, Tensor]
) -> Dataset:
    """Return a Dataset in memory from pixels uint8 [N, C, H, W], labels int64 [N] and the indices of each split."""
    train, val, test = (Split(TensorImages(pixels[indices]), labels[indices]) for indices in splits)
    _, channels, height, width = pixels.shape
    return Dataset(name, classes, (channels, height, width), train, val, test)


def missing(name: str, looked_for: Path, how: str) -> str:
    """Return the error message for an absent data set; `how` is the command or instruction that creates it."""
    return (
        f"recipe.data: {name} is not there (looked for {looked_for}); {how}, "
        "or name the folder that holds it with --data DIR or KDTRAIN_DATA"
    )
