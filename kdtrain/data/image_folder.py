"""A user's own images: FOLDER/<class>/**, or FOLDER/train/<class>/** with val, test and unlabelled/** beside train."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from kdtrain.data.base import HIDDEN, DataConfig, Dataset, limited, missing, stratified
from kdtrain.data.batch_transforms import RandomResizedCropFlip
from kdtrain.data.class_folders import files_below, is_folder, is_image, left_out_notes, list_parts, visible
from kdtrain.data.decoding import WHITE, Colour
from kdtrain.data.image_files import file_dataset
from kdtrain.data.random_affine import CropFlipAugment, word_of
from kdtrain.data.views import Views, batched_view, resize_and_crop, ten_crop
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

Share = Annotated[float, Field(gt=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]

PARTS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split of each folder name, in lower case; upper and lower case are equal."""
UNLABELLED = ("unlabelled", "unlabeled")
"""The names of the folder beside train whose images join the training split without labels, in lower case."""
COLOURS: dict[str, Colour] = {"white": WHITE, "black": (0, 0, 0)}


def _as_colour(written: Any) -> Colour:
    """Return a colour as its three numbers, so that a name and its numbers are one recipe."""
    colour: Any = COLOURS.get(written) if isinstance(written, str) else written
    is_colour = isinstance(colour, list | tuple) and len(colour) == 3
    if not is_colour or not all(type(part) is int and 0 <= part <= 255 for part in colour):
        raise ValueError(f"must be white, black or [red, green, blue] of 0 to 255 each, got {written!r:.80}")
    red, green, blue = colour
    return red, green, blue


class ImageFolder(DataConfig):
    """One folder per class. The shorter side is resized to 8/7 of `resolution`, then a square is cropped.

    The images of a folder `unlabelled` beside `train` join the training split without labels.
    """

    name: Literal["image_folder"]
    folder: str = Field(description="a path below the data folder, or an absolute path")
    resolution: Annotated[int, Field(ge=8, le=1024)]
    augment: CropFlipAugment = Field(  # type: ignore[assignment]  # it takes words too
        "none", description="crop_flip: RandomResizedCrop and horizontal flip; none: the evaluation's view"
    )
    test_time_augmentation: Literal["none", "ten_crop"] = "none"
    val_fraction: Share | None = Field(
        None, description="the share of the training images for validation, if the folder has no val part; default 0.2"
    )
    test_fraction: Share | None = Field(
        None, description="the share of the images for the test split, needed if the folder has no test (or val) part"
    )
    background: Annotated[
        Colour,
        BeforeValidator(_as_colour, json_schema_input_type=Literal["white", "black"] | tuple[Byte, Byte, Byte]),
        Field(description="the colour under transparent pixels: white, black, or [red, green, blue] of 0 to 255"),
    ] = WHITE

    default_val_fraction: ClassVar[float] = 0.2
    train_images: ClassVar[int | None] = None
    class_count: ClassVar[int | None] = None

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`.

        Raises:
            UserError: The folder, a part, or a class's images are absent, or parts and fractions contradict each other.
        """
        folder = root / user_path(self.folder, "recipe.data.folder")
        if not folder.is_dir():
            layout = "put images there as <class>/<image>, or as train/<class>/<image> and test/<class>/<image>"
            raise UserError(missing("image_folder", folder, layout))
        folders, notes = self._part_folders(folder)
        _require_no_parts_in_classes(folders.values())
        unlabelled = _unlabelled(folder, has_parts=folders["train"] != folder)
        listing = list_parts([*folders.values()], every_class=False)
        part = dict(zip(folders, listing.parts, strict=True))
        if "test" not in part:
            assert self.test_fraction is not None
            part["test"], part["train"] = self._drawn(listing.labels, part["train"], self.test_fraction, "test split")
        if "val" not in part:
            fraction = self.default_val_fraction if self.val_fraction is None else self.val_fraction
            part["val"], part["train"] = self._drawn(listing.labels, part["train"], fraction, "val split")
        for name, title in (("train", "train"), ("val", "validation"), ("test", "test")):
            if not len(part[name]):
                raise UserError(f"recipe.data: {folder} leaves no image for the {title} split")
        files = [*listing.files, *unlabelled]
        labels = torch.cat([listing.labels, torch.full((len(unlabelled),), HIDDEN)])
        part["train"] = torch.cat([part["train"], torch.arange(len(listing.files), len(files))])
        parts = [
            limited(labels, part[name], self.limit_per_class, self.split_seed) for name in ("train", "val", "test")
        ]
        left_out = [*listing.left_out]
        for entry in visible(folder) if folder not in folders.values() else ():
            if Path(entry) not in folders.values():
                left_out += files_below(Path(entry)) if is_folder(entry) else [Path(entry)]
        return file_dataset(
            "image_folder", folder, listing.classes, files, labels, parts, self._views(), self.image_shape,
            background=self.background, notes=(*notes, *left_out_notes(folder, sorted({*left_out} - {*unlabelled}))),
        )  # fmt: skip

    def _views(self) -> Views:
        evaluation = train = resize_and_crop(round(self.resolution * 8 / 7), self.resolution)
        if word_of(self.augment) == "crop_flip":
            train = batched_view(evaluation.pre_transform, RandomResizedCropFlip(self.resolution))
        tta = ten_crop(self.resolution) if self.test_time_augmentation == "ten_crop" else None
        return Views(train, evaluation, tta)

    def _drawn(self, labels: Tensor, indices: Tensor, fraction: float, purpose: str) -> tuple[Tensor, Tensor]:
        """Return a stratified share of the images and the others."""
        if not len(indices):
            return indices, indices
        count = round(fraction * len(indices))
        drawn = indices[stratified(labels[indices], count, self.split_seed, purpose)]
        is_drawn = torch.zeros(len(labels), dtype=torch.bool)
        is_drawn[drawn] = True
        return drawn, indices[~is_drawn[indices]]

    def _part_folders(self, folder: Path) -> tuple[dict[str, Path], list[str]]:
        """Return the folder of each split that has one, train first, with notes; without parts, train is `folder`."""
        found: dict[str, Path] = {}
        for path in sorted(Path(entry) for entry in visible(folder) if is_folder(entry)):
            name = PARTS.get(path.name.lower())
            if name in found:
                both = f"{found[name].name} and {path.name}"
                raise UserError(f"recipe.data.folder: {folder} must have one folder for the {name} split, got {both}")
            if name is not None:
                found[name] = path
        if not found:
            if self.test_fraction is None:
                raise UserError(f"recipe.data.test_fraction: {folder} has no train and test part; write a fraction")
            return {"train": folder}, []
        if "train" not in found:
            alone = " and ".join(path.name for path in found.values())
            raise UserError(f"recipe.data.folder: {folder} has {alone}, but no train part; name it train")
        notes = []
        if "test" not in found and self.test_fraction is None:
            if "val" not in found:
                raise UserError(f"recipe.data.test_fraction: {folder} has no test or val part; write a fraction")
            found["test"] = found.pop("val")
            notes.append(
                f"there is no test part, so {found['test'].name} is the test split, and validation takes a share of"
                f" {found['train'].name}; with a test_fraction, {found['test'].name} is the validation split"
            )
        for name, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if name in found and fraction is not None:
                raise UserError(f"recipe.data.{name}_fraction: the {name} part is {found[name]}; remove the fraction")
        return {name: found[name] for name in ("train", "val", "test") if name in found}, notes


def _unlabelled(folder: Path, *, has_parts: bool) -> list[Path]:
    """Return the image files of the folder beside train whose images have no label, at any depth; none without one."""
    found = [Path(entry) for entry in visible(folder) if is_folder(entry) and entry.name.lower() in UNLABELLED]
    if not found:
        return []
    if not has_parts:
        rule = (
            f"stands beside classes, but unlabelled images need a train part; move the classes into {folder / 'train'}"
        )
        raise UserError(f"recipe.data.folder: {found[0]} {rule}")
    if len(found) > 1:
        both = " and ".join(sorted(path.name for path in found))
        raise UserError(f"recipe.data.folder: {folder} must have one folder of unlabelled images, got {both}")
    files = sorted(filter(is_image, files_below(found[0])), key=str)
    if not files:
        raise UserError(f"recipe.data.folder: {found[0]} holds no image")
    return files


def _require_no_parts_in_classes(folders: Iterable[Path]) -> None:
    """Raise UserError for the layout <class>/train: read recursively, train and test images would be mixed."""
    for folder in folders:
        for own in (entry for entry in visible(folder) if is_folder(entry)):
            for below in visible(Path(own)):
                if below.name.lower() in PARTS and is_folder(below):
                    raise UserError(
                        f"recipe.data.folder: splits must stand above the classes, as {below.name}/{own.name}, got"
                        f" {below.path}"
                    )
