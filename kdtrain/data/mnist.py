"""MNIST (LeCun et al. 1998), which setup 3 uses, and two sets in its format; resized and not normalized."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdtrain.data.base import DataConfig, Dataset, limited, missing, remaining, resize_grey, stratified, tensor_dataset
from kdtrain.errors import UserError

HOW = "fetch it with: python -c \"import torchvision; torchvision.datasets.{official}('{root}', download=True)\""
SIDE = 28
UNSIGNED_BYTES = 8


class IdxImages(DataConfig):
    """28 x 28 grey images of ten classes in the files of MNIST. Validation: 5,000 of the 60,000 train images."""

    resolution: Annotated[int, Field(ge=8, le=256)] = 32

    val_images: ClassVar[int] = 5000
    train_images: ClassVar[int | None] = 55000
    class_count: ClassVar[int | None] = 10
    channels: ClassVar[int] = 1
    official: ClassVar[str]
    """The name of torchvision's class and of its folder."""
    classes: ClassVar[tuple[str, ...]]

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`. Raises UserError if its files are absent, damaged or contradictory."""
        import torch

        train_images, train_labels = self._part(root, "train")
        test_images, test_labels = self._part(root, "t10k")
        count = len(train_images)
        if count <= self.val_images:
            file = self._folder(root) / "train-images-idx3-ubyte"
            needed = f"the {self.val_images} images of validation"
            raise UserError(f"recipe.data: {file} must hold more than {needed}, got {count}")
        labels = torch.cat([train_labels, test_labels])
        val = stratified(train_labels, self.val_images, self.split_seed, "val split")
        train = remaining(count, val)
        test = torch.arange(count, len(labels))
        splits = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        pixels = resize_grey(torch.cat([train_images, test_images]).numpy(), self.resolution)
        return tensor_dataset(self.name, pixels, labels, self.classes, (splits[0], splits[1], splits[2]))

    def _folder(self, root: Path) -> Path:
        return root / self.official / "raw"

    def _part(self, root: Path, part: str) -> tuple[Tensor, Tensor]:
        """Return images uint8 [N, 28, 28] and labels int64 [N] of the training or test part."""
        files = (self._folder(root) / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        images_file, labels_file = files
        images, labels = self._read(root, images_file, "images", 3), self._read(root, labels_file, "labels", 1).long()
        height, width = images.shape[1:]
        if (height, width) != (SIDE, SIDE):
            raise UserError(
                f"recipe.data: {images_file} must hold images of {SIDE} x {SIDE} pixels, got {height} x {width}"
            )
        if len(images) != len(labels):
            got = f"{len(labels)} labels, {images_file.name} {len(images)} images"
            raise UserError(f"recipe.data: {labels_file} has {got}")
        bad = (labels > 9).nonzero().flatten().tolist()
        if bad:
            label = int(labels[bad[0]])
            raise UserError(f"recipe.data: {labels_file}: labels must be 0 to 9, got {label} for image {bad[0]}")
        return images, labels

    def _read(self, root: Path, file: Path, kind: str, dimensions: int) -> Tensor:
        """Read an idx file. Raises UserError if it is absent or damaged."""
        how = HOW.format(official=self.official, root=root)
        if not file.exists():
            raise UserError(missing(self.name, file.parent, how))
        try:
            return idx(file.read_bytes(), dimensions)
        except ValueError as error:
            wrong = f"{file} is no whole idx file of {kind} ({error})"
            raise UserError(f"recipe.data: {wrong}; remove it and {how}") from None


class Mnist(IdxImages):
    """28 x 28 grey images of ten digits, resized. Validation: 5,000 of the 60,000 train images, stratified."""

    name: Literal["mnist"]

    official: ClassVar[str] = "MNIST"
    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")


class FashionMnist(IdxImages):
    """28 x 28 grey images of ten kinds of clothes (Xiao et al. 2017, arXiv:1708.07747), split as MNIST."""

    name: Literal["fashion_mnist"]

    official: ClassVar[str] = "FashionMNIST"
    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


class Kmnist(IdxImages):
    """28 x 28 grey images of ten cursive hiragana (Clanuwat et al. 2018, arXiv:1812.01718), split as MNIST."""

    name: Literal["kmnist"]

    official: ClassVar[str] = "KMNIST"
    classes: ClassVar[tuple[str, ...]] = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def idx(data: bytes, dimensions: int) -> Tensor:
    """Parse LeCun's idx format: two zeros, a type, the number of sizes, the sizes, the values; or raise ValueError.

    torchvision has such a reader too, but its import takes each process seconds.
    """
    import torch

    expected = bytes((0, 0, UNSIGNED_BYTES, dimensions))
    if data[:4] != expected:
        raise ValueError(f"begins with {data[:4].hex()} instead of {expected.hex()}")
    header_bytes = 4 + 4 * dimensions
    sizes = [int.from_bytes(data[at : at + 4], "big") for at in range(4, header_bytes, 4)]
    if len(data) != header_bytes + math.prod(sizes):
        raise ValueError(f"has {len(data):,} bytes, its header says {header_bytes + math.prod(sizes):,}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header_bytes).reshape(sizes)
