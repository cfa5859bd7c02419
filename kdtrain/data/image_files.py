"""Images in files: read ahead, kept in memory, listed by class folders."""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdtrain.data.base import Dataset, Split, fingerprint
from kdtrain.data.views import Transform, ViewedImages, Views, described, pixels_of
from kdtrain.errors import UserError
from kdtrain.storage.cache import NO_ROOM, Cache, SharedFolder
from kdtrain.storage.folder import Row

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MEMORY_BYTES = 2 << 30
"""Of one split: all of CUB's 7,684 training images at 246 pixels are 1.9 GB."""

UNIT_IMAGES = 64
SAMPLE_IMAGES = 16
"""From whose size the room is estimated that all take."""

READERS = 2
"""Threads that read ahead: PIL decodes without holding Python's lock."""


class FileSource:
    """Images decoded when first seen; kept as uint8 after the head `kept` while they fit into MEMORY_BYTES."""

    def __init__(self, files: Sequence[Path], kept: Transform) -> None:
        self.files = list(files)
        self.kept = kept
        self.images: dict[int, Image.Image] = {}
        self.bytes = 0
        self.full = False
        self.checked = False
        self._folder: SharedFolder | None = None  # held as long as its pages are read
        self._unshared: str | None = None
        self.shared: list[Tensor] | None = None  # uint8 [H, W, 3], memory-mapped

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int, head: Transform) -> Image.Image:
        if head is not self.kept:
            return self._decoded(index, head)
        if self.shared is not None:
            return Image.fromarray(self.shared[index].numpy())
        if index not in self.images:
            image = self._decoded(index, head)
            self._keep(index, image)
            return image
        return self.images[index]

    def heads(self, head: Transform) -> list[Tensor] | None:
        """Reads all files first."""
        if head is not self.kept:
            return None
        self.check()
        if self.shared is not None:
            return [pixels.permute(2, 0, 1) for pixels in self.shared]
        if len(self.images) < len(self.files):
            return None
        return [pixels_of(self.images[index]) for index in range(len(self.files))]

    def share(self, cache: Cache) -> str | None:
        if self.shared is None and not self.checked:
            self._unshared = self._share(cache)
        return self._unshared

    def _share(self, cache: Cache) -> str | None:
        units = list(torch.arange(len(self.files)).split(UNIT_IMAGES))

        def decoded(number: int) -> dict[str, Tensor]:
            with ThreadPoolExecutor(READERS) as readers:
                images = readers.map(lambda index: self._decoded(index, self.kept), units[number].tolist())
                return {f"{place:03d}": torch.from_numpy(np.array(image)) for place, image in enumerate(images)}

        def estimate() -> int:
            sample = [self._decoded(index, self.kept) for index in range(min(SAMPLE_IMAGES, len(self.files)))]
            return round(3 * sum(image.width * image.height for image in sample) / len(sample) * len(self.files))

        folder = None
        try:
            folder = cache.folder(self._ingredients(), estimate)
            if folder is None:
                return cache.no_room
            folder.fill(range(len(units)), decoded)
            loaded = [folder.load(number) for number in range(len(units))]
        except BaseException as error:
            if folder is not None:
                folder.close()
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                return cache.unwritable(error)
            raise
        self._folder = folder
        self.shared = [unit[name] for unit in loaded for name in sorted(unit)]
        self.checked = True  # every file was read, or had been
        return None

    def _ingredients(self) -> Row:
        stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in self.files for stat in [file.stat()]]
        listing = hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()
        return {"what": "decoded images", "files": listing, "head": described(self.kept), "unit": UNIT_IMAGES,
                "pillow": PIL.__version__, "torchvision": metadata.version("torchvision")}  # fmt: skip

    def check(self) -> None:
        """Reads all files in order: whole until the memory is full, from there only what each says it is."""
        if self.checked:
            return
        with ThreadPoolExecutor(READERS) as readers:
            for index, image in enumerate(readers.map(self._read_ahead, range(len(self.files)))):
                if image is not None:
                    self._keep(index, image)
        self.checked = True

    def _read_ahead(self, index: int) -> Image.Image | None:
        if index in self.images:
            return None
        if not self.full:
            return self._decoded(index, self.kept)
        with opened(self.files[index]):
            return None

    def _decoded(self, index: int, head: Transform) -> Image.Image:
        with opened(self.files[index]) as image:
            pixels = image.convert("RGB")
        return head(pixels)

    def _keep(self, index: int, image: Image.Image) -> None:
        size = 3 * image.width * image.height
        if self.bytes + size > MEMORY_BYTES:
            self.full = True
        else:
            self.images[index] = image
            self.bytes += size


UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError,
    ValueError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What PIL's plugins raise for damaged files."""


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The image of a file, its header read. UserError for a damaged file, also where its pixels are read within, and
    for grey values of more than 8 bits, which PIL would silently cut off at 255."""
    try:
        with Image.open(file) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # float32; int32, I;16, I;16B
                raise UserError(
                    f"{file}: has grey values of more than 8 bits (PIL's mode {image.mode}), which would be cut off"
                    " at 255; save it with 8 bits per channel"
                )
            yield image
    except UNREADABLE as error:
        raise UserError(f"{file}: is not a whole image ({error})") from None


def file_dataset(
    name: str, folder: Path, classes: tuple[str, ...], files: Sequence[Path], labels: Tensor,
    parts: Sequence[Tensor], views: Views, image_shape: tuple[int, int, int],
) -> Dataset:  # fmt: skip
    """A Dataset of image files below `folder` from their labels [N] and the indices of train, val and test.

    The fingerprint names files by path and size, labels and splits, and `written` their times; how images are seen is
    part of the recipe.
    Raises UserError for a split without images.
    """
    for split, part in zip(("train", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise UserError(f"recipe.data: {folder} leaves no image for the {split} split")
    heads = (views.train.head, views.evaluation.head, views.evaluation.head)
    train, val, test = (
        Split(ViewedImages(FileSource([files[i] for i in part], head), views), labels[part])
        for part, head in zip(parts, heads, strict=True)
    )
    stats = [path.stat() for path in files]
    names = "\n".join(f"{path.relative_to(folder)} {stat.st_size}" for path, stat in zip(files, stats, strict=True))
    mark = fingerprint(name, names.encode(), labels, *parts)
    times = hashlib.blake2b(repr([stat.st_mtime_ns for stat in stats]).encode(), digest_size=16).hexdigest()
    return Dataset(name, classes, image_shape, train, val, test, mark, times)


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the folders in `folder`, sorted; UserError unless there are at least 2."""
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"recipe.data: {folder} must hold a folder for each of at least 2 classes, got {len(names)}")
    return names


def is_image(path: Path) -> bool:
    """By its ending; hidden files, such as the `._*` that some archives leave, are none."""
    return path.suffix.lower() in EXTENSIONS and path.name[0] != "."


def listed(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """(image files, labels int64 [N]) of the class folders; UserError for a class without images."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(path for path in (folder / name).iterdir() if is_image(path))
        if not own:
            raise UserError(f"recipe.data: {folder / name} holds no image ({', '.join(EXTENSIONS)})")
        files += own
        labels += [label] * len(own)
    return files, torch.tensor(labels)


def listed_parts(trained: Path, held_out: Path) -> tuple[tuple[str, ...], list[Path], Tensor, Tensor]:
    """(classes, files, labels, indices of the held-out part) of two folders with the same class folders."""
    classes = class_folders(trained)
    if class_folders(held_out) != classes:
        lone = sorted({*classes} ^ {*class_folders(held_out)})[0]
        raise UserError(f"recipe.data: {held_out} and {trained} hold different classes: only one of them has {lone}")
    files, labels = listed(trained, classes)
    more_files, more_labels = listed(held_out, classes)
    return classes, files + more_files, torch.cat([labels, more_labels]), torch.arange(len(more_files)) + len(files)
