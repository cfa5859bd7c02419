"""CIFAR-10 (Krizhevsky 2009), read by torchvision's class; setup 1 enlarges the images to 128 pixels."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, Split, limited, missing, remaining, stratified
from kdtrain.data.batch_transforms import RandomCropFlip, Resize
from kdtrain.data.random_affine import StandardAugment, word_of
from kdtrain.data.views import ArraySource, ViewedImages, Views, batched_view, unchanged
from kdtrain.errors import UserError

HOW = "fetch it with: python -c \"import torchvision; torchvision.datasets.CIFAR10('{root}', download=True)\""


class Cifar10(DataConfig):
    """32 x 32 colour images of ten classes. Training: RandomCrop(32, padding=4), Resize, flip; evaluation: Resize.

    corrected: the validation split is a stratified sample of 5,000 of the 50,000 train images. published: training uses
    all 50,000 train images, and the validation split is the test split, so the epoch is chosen on the reported images.
    """

    name: Literal["cifar10"]
    resolution: Annotated[int, Field(ge=8, le=256)] = 128
    augment: StandardAugment = "standard"  # type: ignore[assignment]  # it takes words too
    convention: Literal["corrected", "published"] = "corrected"

    val_images: ClassVar[int] = 5000
    class_count: ClassVar[int | None] = 10

    @property
    def train_images(self) -> int | None:
        """See `DataConfig.train_images`."""
        return 50000 if self.convention == "published" else 50000 - self.val_images

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`. Raises UserError if its files are absent or damaged."""
        from torchvision.datasets import CIFAR10

        try:
            train_set, test_set = CIFAR10(str(root), train=True), CIFAR10(str(root), train=False)
        except (RuntimeError, OSError) as error:
            folder = root / CIFAR10.base_folder
            raise UserError(missing("cifar10", folder, HOW.format(root=root)) + f" ({error})") from None
        labels = torch.tensor(train_set.targets + test_set.targets)
        pixels = np.concatenate([train_set.data, test_set.data])
        count = len(train_set.targets)
        train, test = torch.arange(count), torch.arange(count, len(labels))
        val = test
        if self.convention == "corrected":
            val = stratified(labels[train], self.val_images, self.split_seed, "val split")
            train = remaining(count, val)
        parts = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        views = self._views()
        splits = [Split(ViewedImages(ArraySource(pixels[part.numpy()]), views), labels[part]) for part in parts]
        return Dataset("cifar10", tuple(train_set.classes), self.image_shape, splits[0], splits[1], splits[2])

    def _views(self) -> Views:
        evaluation = batched_view(unchanged, Resize(self.resolution))
        if word_of(self.augment) == "none":
            return Views(evaluation, evaluation)
        return Views(batched_view(unchanged, RandomCropFlip(32, padding=4, resolution=self.resolution)), evaluation)
