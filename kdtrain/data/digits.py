"""The 1,797 handwritten digits of scikit-learn (Alpaydin and Kaynak 1998); they need no download."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, limited, remaining, resize_grey, stratified, tensor_dataset


class Digits(DataConfig):
    """8 x 8 grey images of ten digits, resized. The splits are stratified: 599 test, 300 validation, 898 train."""

    name: Literal["digits"]
    resolution: Annotated[int, Field(ge=8, le=256)] = 32

    test_images: ClassVar[int] = 599
    val_images: ClassVar[int] = 300
    train_images: ClassVar[int | None] = 898
    class_count: ClassVar[int | None] = 10
    channels: ClassVar[int] = 1

    def load(self, root: Path) -> Dataset:
        """Return the data set. It reads nothing below `root`: scikit-learn has the images."""
        import numpy as np
        import torch
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        test = stratified(labels, self.test_images, self.split_seed, "test split")
        rest = remaining(len(labels), test)
        val = rest[stratified(labels[rest], self.val_images, self.split_seed, "val split")]
        train = remaining(len(labels), test, val)
        splits = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        classes = tuple(str(name) for name in digits.target_names)
        pixels = resize_grey(grey, self.resolution)
        return tensor_dataset("digits", pixels, labels, classes, (splits[0], splits[1], splits[2]))
