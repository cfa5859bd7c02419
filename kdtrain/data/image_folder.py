"""A user's own images: FOLDER/<class>/*, or FOLDER/train/<class>/* and FOLDER/test/<class>/* (or val for test)."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdtrain.data.base import DataConfig, Dataset, limited, missing, remaining, stratified
from kdtrain.data.batch_transforms import RandomResizedCropFlip
from kdtrain.data.image_files import class_folders, file_dataset, list_both_parts, list_images
from kdtrain.data.views import Views, batched_view, resize_and_crop, ten_crop
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

Share = Annotated[float, Field(gt=0, lt=1)]


class ImageFolder(DataConfig):
    """One folder per class. The shorter side is resized to 8/7 of `resolution`, then a square is cropped."""

    name: Literal["image_folder"]
    folder: str = Field(description="a path below the data folder, or an absolute path")
    resolution: Annotated[int, Field(ge=8, le=1024)]
    augment: Literal["none", "crop_flip"] = Field(
        "none", description="crop_flip: RandomResizedCrop and horizontal flip; none: the evaluation's view"
    )
    test_time_augmentation: Literal["none", "ten_crop"] = "none"
    val_fraction: Share = 0.2
    test_fraction: Share | None = Field(None, description="needed if the folder has no test (or val) part")

    train_images: ClassVar[int | None] = None
    class_count: ClassVar[int | None] = None

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`. Raises UserError if the folder, a part, or a class's images are absent."""
        folder = root / user_path(self.folder, "recipe.data.folder")
        if not folder.is_dir():
            layout = "put images there as <class>/<image>, or as train/<class>/<image> and test/<class>/<image>"
            raise UserError(missing("image_folder", folder, layout))
        trained, held_out = self._parts(folder)
        if held_out is None:
            assert self.test_fraction is not None
            classes = class_folders(trained)
            files, labels = list_images(trained, classes)
            test = stratified(labels, round(self.test_fraction * len(labels)), self.split_seed, "test split")
        else:
            classes, files, labels, test = list_both_parts(trained, held_out)
        rest = remaining(len(labels), test)
        val_count = round(self.val_fraction * len(rest))
        val = rest[stratified(labels[rest], val_count, self.split_seed, "val split")]
        train = remaining(len(labels), test, val)
        parts = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        return file_dataset("image_folder", folder, classes, files, labels, parts, self._views(), self.image_shape)

    def _views(self) -> Views:
        evaluation = train = resize_and_crop(round(self.resolution * 8 / 7), self.resolution)
        if self.augment == "crop_flip":
            train = batched_view(evaluation.pre_transform, RandomResizedCropFlip(self.resolution))
        tta = ten_crop(self.resolution) if self.test_time_augmentation == "ten_crop" else None
        return Views(train, evaluation, tta)

    def _parts(self, folder: Path) -> tuple[Path, Path | None]:
        """Return (the folder of the training classes, the folder of the test part or None)."""
        trained = folder / "train"
        if not trained.is_dir():
            if self.test_fraction is None:
                raise UserError(f"recipe.data.test_fraction: {folder} has no train and test part; write a fraction")
            return folder, None
        held_out = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
        if held_out is None and self.test_fraction is None:
            raise UserError(f"recipe.data.test_fraction: {folder} has no test or val part; write a fraction")
        if held_out is not None and self.test_fraction is not None:
            raise UserError(f"recipe.data.test_fraction: the test part is {held_out}; remove the fraction")
        return trained, held_out
