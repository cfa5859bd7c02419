"""One epoch's cached rows of a split: how a file holds them, and how a batch reads them.

N images, maps of C channels and H x W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdtrain.runtime.device import to_device
from kdtrain.storage.cache import SharedFolder, Tensors
from kdtrain.teacher.cache_policy import SMALL_BYTES
from kdtrain.teacher.outputs import UNIT_IMAGES

LAST = " NHWC"
"""Suffix of the name of maps that are stored as [N, H, W, C]: the teacher returned them in channels_last, and the
layout decides the order of a sum's terms."""


def to_stored(name: str, values: Tensor) -> tuple[str, Tensor]:
    """Return name and contiguous tensor as a file holds them; `from_stored` restores name and layout."""
    last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return (name + LAST, values.permute(0, 2, 3, 1)) if last and not values.is_contiguous() else (name, values)


def from_stored(name: str, values: Tensor) -> tuple[str, Tensor]:
    """Return name and tensor in the layout that the teacher returned."""
    return (name.removesuffix(LAST), values.permute(0, 3, 1, 2)) if name.endswith(LAST) else (name, values)


class CachedRows:
    """One epoch's rows: small ones on the device, larger ones in the memory-mapped files until they are read."""

    def __init__(
        self, folder: SharedFolder, epoch: int, units: list[Tensor], loaded: list[Tensors], wanted: Sequence[str],
        device: torch.device, by_batch: bool,
    ) -> None:  # fmt: skip
        self.folder, self.epoch, self.units, self.loaded, self._device = folder, epoch, units, loaded, device
        names = [name for name in loaded[0] if name.removesuffix(LAST) in wanted] if loaded else []
        self._by_batch = [{name: rows[name].to(device) for name in names} for rows in loaded] if by_batch else []
        self._large = [name for name in names if 4 * loaded[0][name][0].numel() > SMALL_BYTES]
        small = [] if by_batch else [name for name in names if name not in self._large]
        self._small = {name: torch.cat([rows[name] for rows in loaded]).to(device) for name in small}

    def unit(self, number: int) -> Tensors:
        """Return the rows of a unit that is a batch."""
        return dict(self._by_batch[number])

    def rows(self, indices: Tensor) -> Tensors:
        """Return the rows of these images [N]."""
        at = to_device(indices, self._device)
        rows = {name: values.index_select(0, at) for name, values in self._small.items()}
        rows |= {name: self._gathered(name, indices.tolist()) for name in self._large}
        return dict(from_stored(name, values) for name, values in rows.items())

    def _gathered(self, name: str, indices: list[int]) -> Tensor:
        rows = torch.stack([self.loaded[index // UNIT_IMAGES][name][index % UNIT_IMAGES] for index in indices])
        return to_device(rows, self._device)
