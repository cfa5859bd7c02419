"""Ants and bees, 244 + 153 images of PyTorch's transfer learning tutorial; setup 2 uses them."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, limited, missing, remaining, stratified
from kdtrain.data.batch_transforms import RandomResizedCropFlip
from kdtrain.data.class_folders import left_out_notes, list_parts
from kdtrain.data.image_files import file_dataset
from kdtrain.data.views import Views, batched_view, resize_and_crop, unchanged
from kdtrain.errors import UserError

ENDINGS = (".jpeg", ".jpg", ".png")
"""The archive also has the placeholder imageNotFound.gif, which is none of the 244 images."""


class Hymenoptera(DataConfig):
    """Training: RandomResizedCrop, flip; evaluation: shorter side to 256/224 of `resolution`, centre crop.

    corrected: the validation split is a stratified sample of 49 of the 244 train images, and the test split is the
    folder `val` (153 images). published: training uses all 244 images, and the 153 are both validation and test split.
    """

    name: Literal["hymenoptera"]
    resolution: Annotated[int, Field(ge=8, le=1024)] = 224
    convention: Literal["corrected", "published"] = "corrected"

    val_share: ClassVar[float] = 0.2
    always_random: ClassVar[bool] = True
    class_count: ClassVar[int | None] = 2

    @property
    def train_images(self) -> int | None:
        """See `DataConfig.train_images`."""
        return 244 if self.convention == "published" else 195

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`. Raises UserError if a folder, a class or its images are absent."""
        folder = root / "hymenoptera_data"
        trained, held_out = folder / "train", folder / "val"
        for part in (trained, held_out):
            if not part.is_dir():
                unpack = f"unpack hymenoptera_data.zip of PyTorch's transfer learning tutorial in {root}"
                raise UserError(missing("hymenoptera", part, unpack))
        listing = list_parts([trained, held_out], ENDINGS)
        labels = listing.labels
        train, test = listing.parts
        val = test
        if self.convention == "corrected":
            val = stratified(labels[train], round(self.val_share * len(train)), self.split_seed, "val split")
            train = remaining(len(labels), test, val)
        parts = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        return file_dataset(
            "hymenoptera", folder, listing.classes, listing.files, labels, parts, self._views(), self.image_shape,
            notes=left_out_notes(folder, listing.left_out),
        )  # fmt: skip

    def _views(self) -> Views:
        train = batched_view(unchanged, RandomResizedCropFlip(self.resolution))
        return Views(train, resize_and_crop(round(self.resolution * 256 / 224), self.resolution))
