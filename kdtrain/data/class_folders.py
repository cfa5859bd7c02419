"""Images in one folder per class: every image below a class's folder, at any depth, belongs to the class.

Names that begin with a dot are hidden and ignored (some archives leave `._*`). Links are followed.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.data.decoding import EXTENSIONS
from kdtrain.data.notes import listed
from kdtrain.errors import UserError, printable

Inode = tuple[int, int]


@dataclass(frozen=True)
class Listing:
    """The images of one or several parts of a data set; a class may be absent from all parts but the first.

    Attributes:
        classes: The names of the K class folders.
        files: The N image files, part by part and class by class.
        labels: int64 [N].
        parts: The image indices of each part.
        left_out: The files that are no images by their ending, or that are in no class folder.
    """

    classes: tuple[str, ...]
    files: list[Path]
    labels: Tensor
    parts: list[Tensor]
    left_out: list[Path]


def list_parts(folders: Sequence[Path], endings: Sequence[str] = EXTENSIONS, *, every_class: bool = True) -> Listing:
    """Return the images of these parts, which are the files with these endings.

    Unless `every_class`, parts after the first one may lack classes.

    Raises:
        UserError: The first part has fewer than 2 classes, parts hold different classes, or a class or a part has no
            image.
    """
    classes = _class_folders(folders[0])
    if len(classes) < 2:
        rule = "must hold a folder for each of at least 2 classes"
        raise UserError(f"recipe.data: {folders[0]} {rule}, got {len(classes)}")
    for folder in folders[1:]:
        own = {*_class_folders(folder)}
        lone = sorted(own ^ {*classes} if every_class else own - {*classes})
        if lone:
            both = f"{folder} and {folders[0]}"
            raise UserError(f"recipe.data: {both} hold different classes: only one of them has {shown(lone[0])}")
    files: list[Path] = []
    labels: list[int] = []
    left_out: list[Path] = []
    parts = []
    for folder in folders:
        first = len(files)
        left_out += sorted(Path(entry) for entry in visible(folder) if not is_folder(entry))
        for label, name in enumerate(classes):
            images: list[Path] = []
            below = files_below(folder / name) if (folder / name).is_dir() else ()
            for path in sorted(below, key=str):  # to compare paths takes several times as long
                (images if is_image(path, endings) else left_out).append(path)
            if not images and (every_class or folder == folders[0]):
                raise UserError(f"recipe.data: {folder / name} holds no image ({', '.join(endings)})")
            files += images
            labels += [label] * len(images)
        if len(files) == first:
            raise UserError(f"recipe.data: {folder} holds no image ({', '.join(endings)})")
        parts.append(torch.arange(first, len(files)))
    return Listing(tuple(map(shown, classes)), files, torch.tensor(labels), parts, left_out)


def left_out_notes(folder: Path, left_out: Sequence[Path]) -> tuple[str, ...]:
    """Return the note about files below the data set's folder that no split has; none if there are no such files."""
    if not left_out:
        return ()
    names = listed([shown(path.relative_to(folder)) for path in left_out])
    return (f"left out, by their ending or because they are in no class: {len(left_out):,} ({names})",)


def is_image(path: Path, endings: Sequence[str] = EXTENSIONS) -> bool:
    """Return True if the ending of a file's name is that of an image, and the file is not hidden."""
    return path.suffix.lower() in endings and path.name[0] != "."


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """Return the files and folders in a folder that are not hidden; UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name[0] != "."]
    except OSError as error:
        raise UserError(f"recipe.data: {folder} cannot be read ({error.strerror})") from None


def shown(name: str | Path) -> str:
    """Return a name as text that can be printed, also if its bytes are no UTF-8."""
    return printable(os.fsencode(name).decode(errors="backslashreplace"))


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in visible(folder) if is_folder(entry)))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True if a link leads to a folder too; UserError if it leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise UserError(f"recipe.data: {entry.path} cannot be read ({error.strerror})") from None


def files_below(folder: Path, above: tuple[Inode, ...] = ()) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders; UserError if a link leads back to a folder above it."""
    for entry in visible(folder):
        if not is_folder(entry):
            yield Path(entry)
            continue
        stat = entry.stat()
        inode = (stat.st_dev, stat.st_ino)
        if inode in above:
            raise UserError(f"recipe.data: {entry.path} is a link to a folder above it; remove it")
        yield from files_below(Path(entry), (*above, inode))
