"""MNIST (LeCun et al. 1998) through torchvision's class, as setup 3 reads it: resized, no normalisation."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, limited, missing, remaining, resize_grey, stratified, tensor_dataset
from kdtrain.errors import UserError

HOW = "fetch it with: python -c \"import torchvision; torchvision.datasets.MNIST('{root}', download=True)\""


class Mnist(DataConfig):
    """28x28 grey images of ten digits, resized. Validation: 5,000 of the 60,000 train images, stratified."""

    name: Literal["mnist"]
    resolution: Annotated[int, Field(ge=8, le=256)] = 32

    val_images: ClassVar[int] = 5000
    train_images: ClassVar[int | None] = 55000
    class_count: ClassVar[int | None] = 10

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, self.resolution, self.resolution

    def load(self, root: Path) -> Dataset:
        """Raises UserError where the files are absent or damaged."""
        import torch
        from torchvision.datasets import MNIST

        folder = root / "MNIST" / "raw"
        try:
            train_set, test_set = MNIST(str(root), train=True), MNIST(str(root), train=False)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(missing("mnist", folder, HOW.format(root=root)) + f" ({error})") from None
        labels = torch.cat([train_set.targets, test_set.targets])
        count = len(train_set.targets)
        val = stratified(train_set.targets, self.val_images, self.split_seed, "val split")
        train = remaining(count, val)
        test = torch.arange(count, len(labels))
        splits = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        pixels = resize_grey(torch.cat([train_set.data, test_set.data]).numpy(), self.resolution)
        classes = tuple(str(digit) for digit in range(10))
        return tensor_dataset("mnist", pixels, labels, classes, (splits[0], splits[1], splits[2]))
