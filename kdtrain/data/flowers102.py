"""Oxford 102 flowers (Nilsback and Zisserman 2008) with its official splits; setup 5 uses it."""

import zlib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from kdtrain.data.base import DataConfig, Dataset, limited, missing
from kdtrain.data.batch_transforms import RandomCropFlip, RandomResizedCropFlip
from kdtrain.data.image_files import file_dataset
from kdtrain.data.views import View, Views, batched_view, unchanged
from kdtrain.errors import UserError

HOW = "fetch it with: python -c \"import torchvision; torchvision.datasets.Flowers102('{root}', download=True)\""
SPLITS = {"trnid": "train", "valid": "validation", "tstid": "test"}
"""The names of the official splits in setid.mat."""


class Flowers102(DataConfig):
    """1,020 train, 1,020 validation and 6,149 test images. Evaluation: the central 0.875, resized.

    `crop: random` is the training view of the Keras example: resized to a square of 160/128 times `resolution`,
    RandomCrop, flip. `inception` is the paper's (Beyer et al. 2021, arXiv:2106.05237): RandomResizedCrop, flip.
    """

    name: Literal["flowers102"]
    resolution: Annotated[int, Field(ge=8, le=1024)] = 128
    crop: Literal["random", "inception"] = "random"

    central_fraction: ClassVar[float] = 0.875
    train_images: ClassVar[int | None] = 1020
    always_random: ClassVar[bool] = True
    class_count: ClassVar[int | None] = 102

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`.

        Raises:
            UserError: Files are absent, or labels, splits and images contradict each other.
        """
        from torchvision.datasets import Flowers102 as Official

        folder = root / "flowers-102"
        if not (folder / "jpg").is_dir():
            raise UserError(missing("flowers102", folder / "jpg", HOW.format(root=root)))
        label_file, split_file = folder / "imagelabels.mat", folder / "setid.mat"
        labels = _numbers(label_file, "labels", root) - 1
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(Official.classes):
            raise UserError(f"{label_file}: labels must be 1 to {len(Official.classes)}")
        parts = [_numbers(split_file, name, root) - 1 for name in SPLITS]
        every = torch.cat(parts)
        if len(every) != len(every.unique()):
            raise UserError(f"{split_file}: an image stands in two splits, or twice in one")
        if len(every) == 0 or every.min() < 0 or every.max() >= len(labels):
            raise UserError(f"{split_file}: images must be 1 to {len(labels)}, as many as {label_file} has labels")
        files = [folder / "jpg" / f"image_{number + 1:05d}.jpg" for number in range(len(labels))]
        there = {path.name for path in (folder / "jpg").iterdir()}
        absent = [path for path in files if path.name not in there]
        if absent:
            raise UserError(f"{absent[0]}: is not there, though {label_file} has its label")
        parts = [limited(labels, part.sort().values, self.limit_per_class, self.split_seed) for part in parts]
        return file_dataset(
            "flowers102", folder, tuple(Official.classes), files, labels, parts, self._views(), self.image_shape
        )

    def _views(self) -> Views:
        from torchvision.transforms import v2

        size = [self.resolution, self.resolution]
        evaluation = View(v2.Compose([self._centre, v2.Resize(size)]), unchanged)
        if self.crop == "inception":
            return Views(batched_view(unchanged, RandomResizedCropFlip(self.resolution)), evaluation)
        larger = round(self.resolution * 160 / 128)
        return Views(batched_view(v2.Resize([larger, larger]), RandomCropFlip(self.resolution)), evaluation)

    def _centre(self, image: Image.Image) -> Image.Image:
        """Return the central 0.875 of each side in whole pixels, rounded as tf.image.central_crop does."""
        left, top = (int((side - side * self.central_fraction) / 2) for side in image.size)
        return image.crop((left, top, image.width - left, image.height - top))


def _numbers(path: Path, name: str, root: Path) -> Tensor:
    """Return a vector of integers from one of the official .mat files, int64."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        with path.open("rb") as file:
            return torch.tensor(loadmat(file)[name].ravel().tolist(), dtype=torch.int64)
    except FileNotFoundError:
        raise UserError(missing("flowers102", path, HOW.format(root=root))) from None
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as the official file ({type(error).__name__}: {error})") from None
