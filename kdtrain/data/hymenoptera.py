"""Ants and bees, 244 + 153 images (PyTorch's transfer learning tutorial), as setup 2 reads them."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, limited, missing, remaining, stratified
from kdtrain.data.batch_transforms import ResizedCropFlip
from kdtrain.data.image_files import file_dataset, listed_parts
from kdtrain.data.views import Views, batched_view, resize_and_crop, unchanged
from kdtrain.errors import UserError


class Hymenoptera(DataConfig):
    """Training: RandomResizedCrop and flip; evaluation: shorter side to 256/224 of `resolution`, centre crop.

    corrected: 49 of the 244 train images, stratified, are the validation split; the folder `val` (153 images) is the
    test split, read once. published: all 244 train, and the 153 both choose the epoch and are reported.
    """

    name: Literal["hymenoptera"]
    resolution: Annotated[int, Field(ge=8, le=1024)] = 224
    convention: Literal["corrected", "published"] = "corrected"

    val_share: ClassVar[float] = 0.2
    drawn: ClassVar[bool] = True
    class_count: ClassVar[int | None] = 2

    @property
    def train_images(self) -> int | None:
        return 244 if self.convention == "published" else 195

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.resolution, self.resolution

    def load(self, root: Path) -> Dataset:
        """Raises UserError where a part, a class or its images are missing."""
        folder = root / "hymenoptera_data"
        trained, held_out = folder / "train", folder / "val"
        for part in (trained, held_out):
            if not part.is_dir():
                unpack = f"unpack hymenoptera_data.zip of PyTorch's transfer learning tutorial in {root}"
                raise UserError(missing("hymenoptera", part, unpack))
        classes, files, labels, test = listed_parts(trained, held_out)
        train = remaining(len(labels), test)
        val = test
        if self.convention == "corrected":
            val = stratified(labels[train], round(self.val_share * len(train)), self.split_seed, "val split")
            train = remaining(len(labels), test, val)
        parts = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        return file_dataset("hymenoptera", folder, classes, files, labels, parts, self._views(), self.image_shape)

    def _views(self) -> Views:
        train = batched_view(unchanged, ResizedCropFlip(self.resolution))
        return Views(train, resize_and_crop(round(self.resolution * 256 / 224), self.resolution))
