"""Pillow's bilinear resize, antialiased, of whole batches on any device, bit for bit.

Pillow weighs with whole numbers, 2^22 to the one, and rounds to bytes after each of its two passes (its Resample.c).
All sums stay below 2^53, so float64 adds them exactly, in whatever order a device does it.
N images, C channels, H x W pixels.
"""

import math
from functools import lru_cache

import PIL
import torch
from torch import Tensor
from torch.nn import functional

ONE = float(1 << 22)
DYADIC = 64
"""Weights that are whole multiples of 1 / DYADIC stay exact in narrower numbers too."""

AT_ONCE_VALUES = 1 << 25
"""So many float64 values of a batch are resized at a time: 256 MiB."""


def resized(pixels_NCHW: Tensor, resolution: int) -> Tensor:
    """uint8 [N, C, resolution, resolution] of uint8 images of equal size."""
    height, width = pixels_NCHW.shape[2:]
    if (height, width) == (resolution, resolution):
        return pixels_NCHW
    rows, columns = _weights_of(height, resolution), _weights_of(width, resolution)
    dyadic = all(torch.equal((each * DYADIC).round(), each * DYADIC) for each in (rows, columns))
    columns_later = bool(rows_first(torch.tensor(height), torch.tensor(width), resolution))
    if dyadic and not columns_later and pixels_NCHW.device.type == "cpu":  # torch's own kernel: weights of 16 bits
        return functional.interpolate(
            pixels_NCHW, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        )
    exact = torch.float32 if dyadic else torch.float64
    rows, columns = (each.to(exact).to(pixels_NCHW.device, non_blocking=True) for each in (rows, columns))
    return _both_passes(pixels_NCHW, rows, columns.T, columns_later)


def resized_each(pixels_NCHW: Tensor, heights: Tensor, widths: Tensor, resolution: int) -> Tensor:
    """uint8 [N, C, resolution, resolution] of uint8 images that fill the upper left heights [N] x widths [N] each."""
    device = pixels_NCHW.device
    count, channels, padded_height, padded_width = pixels_NCHW.shape
    out = torch.empty(count, channels, resolution, resolution, dtype=torch.uint8, device=device)
    chunk = max(1, AT_ONCE_VALUES // pixels_NCHW[0].numel())
    later = rows_first(heights, widths, resolution)
    for columns_later in (False, True):
        for own in (later == columns_later).nonzero().flatten().split(chunk):
            if len(own) == 0:
                continue
            there = own.to(device, non_blocking=True)
            rows = _weights_on(device, heights[own], resolution, padded_height)
            columns = _weights_on(device, widths[own], resolution, padded_width).transpose(1, 2)
            out[there] = _both_passes(pixels_NCHW[there], rows[:, None], columns[:, None], columns_later)
    return out


@lru_cache(maxsize=8)  # every batch of a data set asks
def _weights_of(size: int, out: int) -> Tensor:
    return weights(torch.tensor([size]), out)[0]


def rows_first(heights: Tensor, widths: Tensor, resolution: int) -> Tensor:
    """bool: whether Pillow makes fewer rows before it makes fewer columns. Before version 13 it never did."""
    if int(PIL.__version__.split(".")[0]) < 13:
        return torch.zeros_like(heights, dtype=torch.bool)
    return (heights > resolution) & (heights - resolution > 2 * (widths - resolution))


def _both_passes(pixels_NCHW: Tensor, rows: Tensor, columns: Tensor, columns_later: bool) -> Tensor:
    """uint8 rows @ pixels @ columns, rounded to bytes after each product."""
    pixels = pixels_NCHW.to(rows.dtype)
    if columns_later:
        return _to_bytes(_to_bytes(rows @ pixels).to(rows.dtype) @ columns)
    return _to_bytes(rows @ _to_bytes(pixels @ columns).to(rows.dtype))


def _weights_on(device: torch.device, sizes: Tensor, out: int, padded: int) -> Tensor:
    return weights(sizes.to(device, non_blocking=True), out, padded, int(sizes.max()))


def weights(sizes: Tensor, out: int, padded: int | None = None, largest: int | None = None) -> Tensor:
    """float64 [n, out, padded]: how much each of a row's pixels counts for each of the new ones, for rows of sizes
    [n] pixels. largest: of the sizes, where they lie on a device that should not be waited for."""
    largest = int(sizes.max()) if largest is None else largest
    padded = largest if padded is None else padded
    scale = sizes.double()[:, None] / out
    stretch = scale.clamp(min=1.0)  # a pixel's triangle is as wide as the new pixels are
    centre = (torch.arange(out, device=sizes.device).double() + 0.5) * scale
    first = (centre - stretch + 0.5).trunc().long().clamp(min=0)
    end = torch.minimum((centre + stretch + 0.5).trunc().long(), sizes[:, None])
    taps = first[..., None] + torch.arange(2 * math.ceil(max(1.0, largest / out)) + 1, device=sizes.device)
    distance = ((taps.double() - centre[..., None]) + 0.5) * (1 / stretch)[..., None]
    raw = (1 - distance.abs()).clamp(min=0) * (taps < end[..., None])
    total = torch.zeros_like(centre)
    for each in raw.unbind(-1):  # one after the other, as Pillow does: rounding depends on the order
        total = total + each
    whole = (raw / total[..., None] * ONE + 0.5).trunc()
    dense = torch.zeros(len(sizes), out, padded + taps.shape[-1], dtype=torch.float64, device=sizes.device)
    return dense.scatter_(2, taps, whole)[..., :padded] / ONE


def _to_bytes(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
