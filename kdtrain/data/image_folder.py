"""A user's own images: FOLDER/<class>/* or FOLDER/train/<class>/* with FOLDER/test/<class>/* (or val for test)."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from kdtrain.data.base import Dataset, Split, fingerprint, limited, missing, remaining, stratified
from kdtrain.errors import UserError
from kdtrain.fields import Config, Count, Seed
from kdtrain.streams import stream

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MEMORY_BYTES = 1 << 30
Share = Annotated[float, Field(gt=0, lt=1)]


class ImageFolder(Config):
    """One folder per class. Shorter side resized to 8/7 of `resolution`, then cropped to a square."""

    name: Literal["image_folder"]
    folder: str = Field(description="below the data folder, or absolute")
    resolution: Annotated[int, Field(ge=8, le=1024)]
    augment: Literal["none", "crop_flip"] = Field(
        "none", description="crop_flip: RandomResizedCrop and horizontal flip; none: the evaluation's view"
    )
    val_fraction: Share = 0.2
    test_fraction: Share | None = Field(None, description="needed where the folder has no test (or val) part")
    limit_per_class: Count | None = Field(None, description="at most so many of each class in each split")
    split_seed: Seed = 0

    train_images: ClassVar[int | None] = None
    class_count: ClassVar[int | None] = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.resolution, self.resolution

    def load(self, root: Path) -> Dataset:
        """Raises UserError where the folder, its parts or images of a class are missing."""
        folder = root / self.folder
        if not folder.is_dir():
            layout = "put images there as <class>/<image>, or as train/<class>/<image> and test/<class>/<image>"
            raise UserError(missing("image_folder", folder, layout))
        trained, held_out = self._parts(folder)
        classes = _classes(trained)
        files, labels = _listed(trained, classes)
        if held_out is None:
            assert self.test_fraction is not None
            test = stratified(labels, round(self.test_fraction * len(labels)), self.split_seed, "test split")
        else:
            if _classes(held_out) != classes:
                raise UserError(f"recipe.data: {held_out} and {trained} hold different classes")
            test_files, test_labels = _listed(held_out, classes)
            test = torch.arange(len(files), len(files) + len(test_files))
            files, labels = files + test_files, torch.cat([labels, test_labels])
        rest = remaining(len(labels), test)
        val_count = round(self.val_fraction * len(rest))
        val = rest[stratified(labels[rest], val_count, self.split_seed, "val split")]
        train = remaining(len(labels), test, val)
        parts = [limited(labels, part, self.limit_per_class, self.split_seed) for part in (train, val, test)]
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            if len(part) == 0:
                raise UserError(f"recipe.data: {folder} leaves no image for the {name} split")
        splits = [Split(FileImages([files[i] for i in part], self), labels[part]) for part in parts]
        names = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files).encode()
        # the view is part of the recipe already (resolution, augment); the fingerprint names files, labels, splits
        mark = fingerprint("image_folder", names, labels, *parts)
        return Dataset("image_folder", classes, self.image_shape, splits[0], splits[1], splits[2], mark)

    def _parts(self, folder: Path) -> tuple[Path, Path | None]:
        """(folder of the classes to train on, folder of the test part or None)."""
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


class FileImages:
    """Images decoded when first seen; kept as resized uint8 while they fit into MEMORY_BYTES."""

    def __init__(self, files: list[Path], config: ImageFolder) -> None:
        from torchvision.transforms import v2

        self.files = files
        self.resize = v2.Resize(round(config.resolution * 8 / 7), antialias=True)
        self.crop = v2.CenterCrop(config.resolution)
        self.augment = config.augment
        self.random_view = v2.Compose(
            [v2.RandomResizedCrop(config.resolution, antialias=True), v2.RandomHorizontalFlip()]
        )
        self.decoded: dict[int, Image.Image] = {}
        self.decoded_bytes = 0

    def __len__(self) -> int:
        return len(self.files)

    def train_view(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        if self.augment == "none":
            return self.eval_view(indices)
        views = []
        with torch.random.fork_rng(devices=[]):
            for i in indices.tolist():
                torch.manual_seed(stream(seed, "view", epoch, i))
                views.append(_pixels(self.random_view(self._image(i))))
        return torch.stack(views).float().div_(255)

    def eval_view(self, indices: Tensor) -> Tensor:
        views = [_pixels(self.crop(self._image(i))) for i in indices.tolist()]
        return torch.stack(views).float().div_(255)

    def tta_view(self, indices: Tensor) -> Tensor | None:
        return None

    def check(self) -> None:
        for index in range(len(self.files)):
            self._image(index)

    def _image(self, index: int) -> Image.Image:
        if index in self.decoded:
            return self.decoded[index]
        try:
            with Image.open(self.files[index]) as file:
                image: Image.Image = self.resize(file.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{self.files[index]}: is not a whole image ({error})") from None
        size = 3 * image.width * image.height
        if self.decoded_bytes + size <= MEMORY_BYTES:
            self.decoded[index] = image
            self.decoded_bytes += size
        return image


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"recipe.data: {folder} must hold a folder for each of at least 2 classes, got {len(names)}")
    return names


def _listed(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in EXTENSIONS)
        if not own:
            raise UserError(f"recipe.data: {folder / name} holds no image ({', '.join(EXTENSIONS)})")
        files += own
        labels += [label] * len(own)
    return files, torch.tensor(labels)
