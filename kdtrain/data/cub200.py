"""CUB-200-2011 (Wah et al. 2011, Caltech-UCSD Birds) from its official archive, with the splits of setup 4."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdtrain.data.base import DataConfig, Dataset, limited, missing
from kdtrain.data.class_folders import is_image
from kdtrain.data.image_files import file_dataset
from kdtrain.data.random_affine import StandardAugment, word_of
from kdtrain.data.views import View, Views, resize_and_crop, ten_crop
from kdtrain.errors import UserError
from kdtrain.runtime.rng import generator


class Cub200(DataConfig):
    """200 birds. Each class of n images has n // 5 test images; a fifth of the rest, rounded down, is for validation.

    Training: shorter side to int(1.1 * resolution), RandomCrop, AutoAugment with the ImageNet policy (Cubuk et al.
    2019, arXiv:1805.09501); evaluation: shorter side to `resolution`, centre crop. The classes are those of
    classes.txt that have images, so a part of the archive with shortened lists is a smaller data set.
    """

    name: Literal["cub200"]
    resolution: Annotated[int, Field(ge=8, le=1024)] = 224
    augment: StandardAugment = "standard"  # type: ignore[assignment]  # it takes words too
    test_time_augmentation: Literal["ten_crop", "none"] = "ten_crop"

    train_images: ClassVar[int | None] = 7684
    class_count: ClassVar[int | None] = 200

    def load(self, root: Path) -> Dataset:
        """Return the data set below `root`.

        Raises:
            UserError: Files are absent, or the lists contradict each other or the images.
        """
        folder = root / "CUB_200_2011"
        for part in ("images", "images.txt", "image_class_labels.txt", "classes.txt"):
            if not (folder / part).exists():
                unpack = f"unpack CUB_200_2011.tgz, the archive of Caltech-UCSD Birds-200-2011, in {root}"
                raise UserError(missing("cub200", folder / part, unpack))
        classes, files, labels = _read(folder)
        parts = [
            limited(labels, part, self.limit_per_class, self.split_seed) for part in split(labels, self.split_seed)
        ]
        return file_dataset("cub200", folder, classes, files, labels, parts, self._views(), self.image_shape)

    def _views(self) -> Views:
        from torchvision.transforms import v2

        evaluation = train = resize_and_crop(self.resolution, self.resolution)
        if word_of(self.augment) == "standard":
            random = v2.Compose([v2.RandomCrop(self.resolution), v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)])
            train = View(v2.Resize(int(1.1 * self.resolution)), random)
        return Views(
            train, evaluation, ten_crop(self.resolution) if self.test_time_augmentation == "ten_crop" else None
        )


def split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sorted indices of train, validation and test; each class is shuffled by its own random stream."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator(seed, "cub split", label))]
        tested = len(members) // 5
        validated = (len(members) - tested) // 5
        test, val, train = shuffled.split([tested, validated, len(members) - tested - validated])
        for part, drawn in zip(parts, (train, val, test), strict=True):
            part.append(drawn)
    train, val, test = (torch.cat(part).sort().values for part in parts)
    return train, val, test


def _read(folder: Path) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Return (classes, files, labels) of the three lists; a UserError names list, line and mistake."""
    class_file, image_file, label_file = (
        folder / name for name in ("classes.txt", "images.txt", "image_class_labels.txt")
    )
    names = {number: name for _, number, name in _lines(class_file)}
    images = {number: (line, path) for line, number, path in _lines(image_file)}
    class_of: dict[int, int] = {}
    for line, number, text in _lines(label_file):
        if number not in images:
            raise UserError(f"{label_file}:{line}: {image_file.name} has no image {number}")
        if not text.isdecimal() or int(text) not in names:
            raise UserError(f"{label_file}:{line}: label {text} of image {number} is not in {class_file.name}")
        own_folder = images[number][1].split("/")[0]
        if own_folder != names[int(text)]:
            raise UserError(
                f"{label_file}:{line}: image {number} has label {text}, {names[int(text)]}, but lies in {own_folder}"
            )
        class_of[number] = int(text)
    there = {path.relative_to(folder / "images").as_posix() for path in (folder / "images").glob("*/*")}
    for number, (line, path) in images.items():
        if number not in class_of:
            raise UserError(f"{image_file}:{line}: {label_file.name} has no label for image {number}")
        if path not in there:
            raise UserError(f"{image_file}:{line}: {folder / 'images' / path} is not there")
    # a list that lost lines must not be taken for a smaller data set
    unlisted = sorted(path for path in there - {path for _, path in images.values()} if is_image(Path(path)))
    if unlisted:
        raise UserError(f"{image_file}: has no line for {folder / 'images' / unlisted[0]}")
    used = sorted(set(class_of.values()))
    if len(used) < 2:
        raise UserError(f"{label_file}: must give images to at least 2 classes, got {len(used)}")
    label_of = {number: label for label, number in enumerate(used)}
    files = [folder / "images" / path for _, path in images.values()]
    labels = torch.tensor([label_of[class_of[number]] for number in images])
    return tuple(names[number] for number in used), files, labels


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (line, number, text) of a list of `<number> <text>`; each number occurs once."""
    first_line: dict[int, int] = {}
    for line, content in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not content.strip():
            continue
        number, _, text = content.strip().partition(" ")
        if not number.isdecimal() or not text:
            raise UserError(f"{path}:{line}: must be a number, a space and a text, got {content!r:.80}")
        if int(number) in first_line:
            raise UserError(f"{path}:{line}: {number} stands in line {first_line[int(number)]} already")
        first_line[int(number)] = line
        yield line, int(number), text.strip()
