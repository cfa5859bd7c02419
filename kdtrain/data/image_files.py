"""Images in files: the decoded images are kept in memory, or in files of a node's cache."""

import hashlib
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from kdtrain.data.base import Dataset, Split
from kdtrain.data.class_folders import shown
from kdtrain.data.decoding import DECODING, WHITE, Colour, decode, open_image
from kdtrain.data.file_contents import FileContents
from kdtrain.data.views import Transform, ViewedImages, Views, transform_repr
from kdtrain.errors import UserError
from kdtrain.storage.cache import Cache, SharedFolder
from kdtrain.storage.folder import Row

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
        background: The colour under transparent pixels.
        contents: The digests of the files' contents; None in loader processes, which need none.
    """

    def __init__(
        self,
        files: Sequence[Path],
        pre_transform: Transform,
        background: Colour = WHITE,
        contents: FileContents | None = None,
    ) -> None:
        self.files = list(files)
        self.pre_transform = pre_transform
        self.background = background
        self.contents = contents
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
        taken = ("files", "pre_transform", "background")
        return {name: getattr(self, name) for name in taken} | {"unit_files": self._unit_files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"], state["pre_transform"], state["background"])  # type: ignore[misc]
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

    def select(self, indices: Tensor) -> "FileSource":
        """See `Images.select`."""
        files = [self.files[index] for index in indices.tolist()]
        return FileSource(files, self.pre_transform, self.background, self.contents)

    def digests(self) -> list[str]:
        """See `Images.digests`."""
        assert self.contents is not None
        return self.contents.of(self.files)

    def name(self, index: int) -> str:
        """See `Images.name`."""
        assert self.contents is not None
        return shown(self.files[index].relative_to(self.contents.folder))

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
        contents = hashlib.blake2b(" ".join(self.digests()).encode(), digest_size=16).hexdigest()
        return {"what": "decoded images", "contents": contents, "decoding": DECODING,
                "background": self.background, "head": transform_repr(self.pre_transform), "unit": UNIT_IMAGES,
                "pillow": PIL.__version__, "torchvision": metadata.version("torchvision")}  # fmt: skip

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
        return pre_transform(decode(self.files[index], self.background))

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


def file_dataset(
    name: str, folder: Path, classes: tuple[str, ...], files: Sequence[Path], labels: Tensor,
    parts: Sequence[Tensor], views: Views, image_shape: tuple[int, int, int], *,
    background: Colour = WHITE, notes: tuple[str, ...] = (),
) -> Dataset:  # fmt: skip
    """Return the Dataset of image files below a folder.

    `parts` are the image indices of train, validation and test. Raises UserError if one of them is empty.
    """
    for split, part in zip(("train", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise UserError(f"recipe.data: {folder} leaves no image for the {split} split")
    pre_transforms = (views.train.pre_transform, views.evaluation.pre_transform, views.evaluation.pre_transform)
    contents = FileContents(folder, [files[i] for i in torch.cat([*parts]).unique().tolist()])
    train, val, test = (
        Split(
            ViewedImages(FileSource([files[i] for i in part.tolist()], pre_transform, background, contents), views),
            labels[part],
        )
        for part, pre_transform in zip(parts, pre_transforms, strict=True)
    )
    return Dataset(name, classes, image_shape, train, val, test, notes)
