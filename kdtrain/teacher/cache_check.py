"""The check of cached teacher outputs: some are computed again and compared."""

import torch
from torch import Tensor

from kdtrain.errors import UserError
from kdtrain.storage.cache import Tensors
from kdtrain.teacher.cache_rows import CachedRows
from kdtrain.teacher.network import CHUNK_IMAGES

EPOCHS_PER_CHECK = 8
"""Epochs between two checks."""
TOLERANCE = 1e-4
"""Relative and absolute tolerance on a GPU; on a CPU the bits must agree."""


def chunk_to_check(units: list[Tensor], draw: int, whole_unit: bool) -> tuple[int, int, Tensor]:
    """Choose a chunk, or a whole unit, to compute again: return unit number, offset in it, and image indices."""
    number = draw % len(units)
    indices = units[number]
    if whole_unit:
        return number, 0, indices
    first = CHUNK_IMAGES * (draw // len(units) % -(-len(indices) // CHUNK_IMAGES))
    return number, first, indices[first : first + CHUNK_IMAGES]


def require_equal(computed: Tensors, cached: CachedRows, unit: int, first: int, device: torch.device) -> None:
    """Raise UserError if outputs computed again differ from a unit's cached rows from `first` on."""
    near = torch.equal if device.type == "cpu" else _near
    for name, values in computed.items():
        read = cached.loaded[unit][name][first : first + len(values)].to(device)
        if not near(values, read):
            largest = (values - read).abs().max().item()
            raise UserError(
                f"teacher cache: {cached.folder.path}: unit {unit} differs from the teacher's outputs ({name} by up to"
                f" {largest:.3g}); remove that folder, or write resources: {{teacher_cache: none}}"
            )


def _near(values: Tensor, read: Tensor) -> bool:
    return torch.allclose(values, read, rtol=TOLERANCE, atol=TOLERANCE)
