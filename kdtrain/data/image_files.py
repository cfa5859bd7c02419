"""Image files: decoding, keeping the decoded images, and listing the files of class folders."""

import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors.torch
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdtrain.data.base import Dataset, Split, fingerprint
from kdtrain.data.views import Transform, ViewedImages, Views, transform_repr
from kdtrain.errors import UserError
from kdtrain.storage.cache import Cache, SharedFolder
from kdtrain.storage.folder import Row

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_MEMORY_BYTES = 2 << 30
"""The most that the decoded images of one split may take: CUB's 7,684 training images at 246 pixels are 1.9 GB."""

UNIT_IMAGES = 64
"""Decoded images in one file."""
SAMPLE_IMAGES = 16
"""Images from whose size the size of all is estimated."""
BLOCK_BYTES = 16 << 20
"""Decoded images in memory lie in blocks of this size."""
READERS = 2
"""Threads that read ahead: PIL decodes without Python's global lock."""


class FileSource:
    """The images of one split in image files.

    The first read of an image decodes it. The result of one pre-transform stays in memory, at most MAX_MEMORY_BYTES
    for all images, or in memory-mapped files: those of the node's cache, or those of `move_to_files`.

    Args:
        files: The image files.
        pre_transform: The pre-transform whose results are kept. Another one reads and decodes the file each time.
    """

    def __init__(self, files: Sequence[Path], pre_transform: Transform) -> None:
        self.files = list(files)
        self.pre_transform = pre_transform
        self.decoded: dict[int, Tensor] = {}  # uint8 [H, W, 3], in memory or memory-mapped
        self.bytes = 0
        self.full = False
        self.checked = False
        self.shared = False
        self._free = np.empty(0, np.uint8)  # the rest of the newest block
        self._unit_files: dict[int, Path] = {}
        self._cache_folder: SharedFolder | None = None  # held as long as its files are read
        self._unshared: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a loader process needs. It maps the decoded images that are in files and keeps no others."""
        return {"files": self.files, "pre_transform": self.pre_transform, "unit_files": self._unit_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"], state["pre_transform"])  # type: ignore[misc]
        self.full = True
        for unit, file in state["unit_files"].items():
            self._map(unit, file)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int, pre_transform: Transform) -> Image.Image:
        """See `Source.image`."""
        if pre_transform is not self.pre_transform:
            return self._decode(index, pre_transform)
        if index in self.decoded:
            return Image.fromarray(self.decoded[index].numpy())
        image = self._decode(index, pre_transform)
        self._keep(index, image)
        return image

    def all_images(self, pre_transform: Transform) -> list[Tensor] | None:
        """See `Source.all_images`. All files are read first."""
        if pre_transform is not self.pre_transform:
            return None
        self.check()
        if len(self.decoded) < len(self.files):
            return None
        return [self.decoded[index].permute(2, 0, 1) for index in range(len(self.files))]

    def share(self, cache: Cache) -> str | None:
        """See `Images.share`."""
        if not self.shared and not self.checked:
            self._unshared = self._share(cache)
        return self._unshared

    def _share(self, cache: Cache) -> str | None:
        units = self._units()

        def decode(unit: int) -> dict[str, Tensor]:
            with ThreadPoolExecutor(READERS) as readers:
                images = readers.map(lambda index: self._decode(index, self.pre_transform), units[unit])
                return {_name(place): torch.from_numpy(np.array(image)) for place, image in enumerate(images)}

        def estimate_bytes() -> int:
            sample = [self._decode(index, self.pre_transform) for index in range(min(SAMPLE_IMAGES, len(self.files)))]
            return round(3 * sum(image.width * image.height for image in sample) / len(sample) * len(self.files))

        folder = cache.filled_folder(self._ingredients(), estimate_bytes, len(units), decode)
        if isinstance(folder, str):
            return folder
        for unit in range(len(units)):
            self._map(unit, folder.file(unit))
        self._cache_folder = folder
        self.shared = True
        self.checked = True  # this process or another one has decoded every file
        return None

    def _ingredients(self) -> Row:
        stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in self.files for stat in [file.stat()]]
        listing = hashlib.blake2b(json.dumps(stats).encode(), digest_size=16).hexdigest()
        return {"what": "decoded images", "files": listing, "head": transform_repr(self.pre_transform),
                "unit": UNIT_IMAGES, "pillow": PIL.__version__,
                "torchvision": metadata.version("torchvision")}  # fmt: skip

    def move_to_files(self, folder: Path) -> None:
        """See `Images.move_to_files`."""
        if self.shared:
            return
        self._unit_files = {}
        self._free = np.empty(0, np.uint8)
        for unit, indices in enumerate(self._units()):
            images = {_name(place): self.decoded[i] for place, i in enumerate(indices) if i in self.decoded}
            file = folder / f"unit-{unit}.safetensors"
            if images:
                file.write_bytes(safetensors.torch.save(images))
                self._map(unit, file)

    def _units(self) -> list[range]:
        """Return the image indices of each file of decoded images."""
        total = len(self.files)
        return [range(first, min(first + UNIT_IMAGES, total)) for first in range(0, total, UNIT_IMAGES)]

    def _map(self, unit: int, file: Path) -> None:
        """Take the decoded images of a unit from a memory-mapped file."""
        for name, pixels in safetensors.torch.load_file(file).items():
            self.decoded[unit * UNIT_IMAGES + int(name)] = pixels
        self._unit_files[unit] = file

    def check(self) -> None:
        """See `Images.check`. If the memory is full, of the remaining files only the headers are read."""
        if self.checked:
            return
        with ThreadPoolExecutor(READERS) as readers:
            for index, image in enumerate(readers.map(self._read_ahead, range(len(self.files)))):
                if image is not None:
                    self._keep(index, image)
        self.checked = True

    def _read_ahead(self, index: int) -> Image.Image | None:
        if index in self.decoded:
            return None
        if not self.full:
            return self._decode(index, self.pre_transform)
        with open_image(self.files[index]):
            return None

    def _decode(self, index: int, pre_transform: Transform) -> Image.Image:
        with open_image(self.files[index]) as image:
            pixels = image.convert("RGB")
        return pre_transform(pixels)

    def _keep(self, index: int, image: Image.Image) -> None:
        size = 3 * image.width * image.height
        self.full = self.full or self.bytes + size > MAX_MEMORY_BYTES
        if not self.full:
            if len(self._free) < size:
                # an anonymous mapping goes back to the system when its images have moved to files; malloc's memory
                # would stay with this process
                self._free = np.frombuffer(mmap.mmap(-1, max(size, BLOCK_BYTES)), np.uint8)
            pixels, self._free = self._free[:size].reshape(image.height, image.width, 3), self._free[size:]
            pixels[:] = np.array(image)
            self.decoded[index] = torch.from_numpy(pixels)
            self.bytes += size


def _name(place: int) -> str:
    """Return the name of an image in a unit; the names sort in the order of the images."""
    return f"{place:03d}"


UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError,
    ValueError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What PIL's plugins raise for damaged files."""


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open an image file; a UserError names a damaged one, and one whose grey values PIL would cut off at 255."""
    try:
        with Image.open(file) as image:
            if image.mode == "F" or image.mode.startswith("I"):  # float32; int32, I;16, I;16B
                raise UserError(
                    f"{file}: has grey values of more than 8 bits (PIL's mode {image.mode}), which PIL would cut off"
                    " at 255; save it with 8 bits per channel"
                )
            yield image
    except UNREADABLE as error:
        raise UserError(f"{file}: is not a whole image ({error})") from None


def file_dataset(
    name: str, folder: Path, classes: tuple[str, ...], files: Sequence[Path], labels: Tensor,
    parts: Sequence[Tensor], views: Views, image_shape: tuple[int, int, int],
) -> Dataset:  # fmt: skip
    """Return the Dataset of image files below a folder.

    The fingerprint names the files by path and size, the labels and the splits, not the views: those are part of the
    recipe.

    `parts` are the image indices of train, validation and test. Raises UserError if one of them is empty.
    """
    for split, part in zip(("train", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise UserError(f"recipe.data: {folder} leaves no image for the {split} split")
    pre_transforms = (views.train.pre_transform, views.evaluation.pre_transform, views.evaluation.pre_transform)
    train, val, test = (
        Split(ViewedImages(FileSource([files[i] for i in part], pre_transform), views), labels[part])
        for part, pre_transform in zip(parts, pre_transforms, strict=True)
    )
    stats = [path.stat() for path in files]
    names = "\n".join(f"{path.relative_to(folder)} {stat.st_size}" for path, stat in zip(files, stats, strict=True))
    mark = fingerprint(name, names.encode(), labels, *parts)
    times = hashlib.blake2b(repr([stat.st_mtime_ns for stat in stats]).encode(), digest_size=16).hexdigest()
    return Dataset(name, classes, image_shape, train, val, test, mark, times)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders in `folder`; raise UserError if there are fewer than 2."""
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"recipe.data: {folder} must hold a folder for each of at least 2 classes, got {len(names)}")
    return names


def is_image(path: Path) -> bool:
    """Return True if the file's ending is that of an image. Hidden files (some archives leave `._*`) are no images."""
    return path.suffix.lower() in EXTENSIONS and path.name[0] != "."


def list_images(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Return the N image files of the class folders and their labels, int64 [N]; raise UserError for an empty class."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = sorted(path for path in (folder / name).iterdir() if is_image(path))
        if not own:
            raise UserError(f"recipe.data: {folder / name} holds no image ({', '.join(EXTENSIONS)})")
        files += own
        labels += [label] * len(own)
    return files, torch.tensor(labels)


def list_both_parts(train: Path, held_out: Path) -> tuple[tuple[str, ...], list[Path], Tensor, Tensor]:
    """Return (classes, files, labels, indices of the held-out files) of two folders with the same class folders."""
    classes = class_folders(train)
    if class_folders(held_out) != classes:
        lone = sorted({*classes} ^ {*class_folders(held_out)})[0]
        raise UserError(f"recipe.data: {held_out} and {train} hold different classes: only one of them has {lone}")
    files, labels = list_images(train, classes)
    more_files, more_labels = list_images(held_out, classes)
    return classes, files + more_files, torch.cat([labels, more_labels]), torch.arange(len(more_files)) + len(files)
