"""Pillow's antialiased bilinear resize for whole batches on any device, bit for bit.

Pillow's weights are integers in units of 2^-22, and it rounds to bytes after each of its two passes (Resample.c).
All sums stay below 2^53, so float64 adds them exactly in any order.
N images, C channels, H x W pixels.
"""

import math
from functools import lru_cache

import PIL
import torch
from torch import Tensor
from torch.nn import functional

from kdtrain.runtime.device import to_device

ONE = float(1 << 22)
DYADIC = 64
"""Weights that are multiples of 1 / DYADIC are exact in float32 and in torch's 16-bit weights too."""

CHUNK_VALUES = 1 << 25
"""Float64 values that are resized at a time: 256 MiB."""


def resize(pixels_NCHW: Tensor, resolution: int) -> Tensor:
    """Return images of equal size, uint8 [N, C, H, W], as squares [N, C, resolution, resolution]."""
    height, width = pixels_NCHW.shape[2:]
    if (height, width) == (resolution, resolution):
        return pixels_NCHW
    rows, columns = _weights_of(height, resolution), _weights_of(width, resolution)
    dyadic = all(torch.equal((each * DYADIC).round(), each * DYADIC) for each in (rows, columns))
    columns_later = bool(rows_first(torch.tensor(height), torch.tensor(width), resolution))
    if dyadic and not columns_later and pixels_NCHW.device.type == "cpu":  # faster: torch's kernel with 16-bit weights
        return functional.interpolate(
            pixels_NCHW, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
    exact = torch.float32 if dyadic else torch.float64
    rows, columns = (to_device(each.to(exact), pixels_NCHW.device) for each in (rows, columns))
    return _both_passes(pixels_NCHW, rows, columns.T, columns_later)


def resize_each(pixels_NCHW: Tensor, heights: Tensor, widths: Tensor, resolution: int) -> Tensor:
    """Return images of different sizes as squares uint8 [N, C, resolution, resolution].

    Each image fills the upper left part of its box; heights and widths, int64 [N], are on the CPU.
    """
    device = pixels_NCHW.device
    count, channels, padded_height, padded_width = pixels_NCHW.shape
    out = torch.empty(count, channels, resolution, resolution, dtype=torch.uint8, device=device)
    chunk = max(1, CHUNK_VALUES // pixels_NCHW[0].numel())
    later = rows_first(heights, widths, resolution)
    for columns_later in (False, True):
        for own in (later == columns_later).nonzero().flatten().split(chunk):
            if len(own) == 0:
                continue
            there = to_device(own, device)
            rows = _weights_on(device, heights[own], resolution, padded_height)
            columns = _weights_on(device, widths[own], resolution, padded_width).transpose(1, 2)
            out[there] = _both_passes(pixels_NCHW[there], rows[:, None], columns[:, None], columns_later)
    return out


@lru_cache(maxsize=8)  # the same for every batch of a data set
def _weights_of(size: int, out: int) -> Tensor:
    return weights(torch.tensor([size]), out)[0]


def rows_first(heights: Tensor, widths: Tensor, resolution: int) -> Tensor:
    """Return True for the sizes whose rows Pillow resizes before the columns. Versions before 13 never do so."""
    if int(PIL.__version__.split(".")[0]) < 13:
        return torch.zeros_like(heights, dtype=torch.bool)
    return (heights > resolution) & (heights - resolution > 2 * (widths - resolution))


def _both_passes(pixels_NCHW: Tensor, rows: Tensor, columns: Tensor, columns_later: bool) -> Tensor:
    """Return rows @ pixels @ columns, rounded to bytes after each product."""
    pixels = pixels_NCHW.to(rows.dtype)
    if columns_later:
        return _to_bytes(_to_bytes(rows @ pixels).to(rows.dtype) @ columns)
    return _to_bytes(rows @ _to_bytes(pixels @ columns).to(rows.dtype))


def _weights_on(device: torch.device, sizes: Tensor, out: int, padded: int) -> Tensor:
    return weights(to_device(sizes, device), out, padded, int(sizes.max()))


def weights(sizes: Tensor, out: int, padded: int | None = None, largest: int | None = None) -> Tensor:
    """Return the weight of each pixel of n rows of these lengths in each pixel of the resized row.

    It is float64 [n, out, padded], with zeros after the largest size. `largest` is that size, if `sizes` is on a
    device that should not be waited for.
    """
    largest = int(sizes.max()) if largest is None else largest
    padded = largest if padded is None else padded
    scale = sizes.double()[:, None] / out
    stretch = scale.clamp(min=1.0)  # the triangle filter is as wide as a new pixel
    centre = (torch.arange(out, device=sizes.device).double() + 0.5) * scale
    first = (centre - stretch + 0.5).trunc().long().clamp(min=0)
    end = torch.minimum((centre + stretch + 0.5).trunc().long(), sizes[:, None])
    taps = first[..., None] + torch.arange(2 * math.ceil(max(1.0, largest / out)) + 1, device=sizes.device)
    distance = ((taps.double() - centre[..., None]) + 0.5) * (1 / stretch)[..., None]
    raw = (1 - distance.abs()).clamp(min=0) * (taps < end[..., None])
    total = torch.zeros_like(centre)
    for each in raw.unbind(-1):  # in Pillow's order, on which the rounding depends
        total = total + each
    whole = (raw / total[..., None] * ONE + 0.5).trunc()
    dense = torch.zeros(len(sizes), out, padded + taps.shape[-1], dtype=torch.float64, device=sizes.device)
    return dense.scatter_(2, taps, whole)[..., :padded] / ONE


def _to_bytes(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
