"""at against loops: equation 2 of Zagoruyko & Komodakis 2017, as a mean over positions."""

import math

import pytest
import torch
from losses import batch, criterion, normal, outputs

from kdtrain.methods.at import at_loss

SHAPES = [(1, 3, 2, 2), (5, 4, 3, 7), (3, 1, 14, 5), (2, 200, 1, 1)]


def attention_by_hand(maps: list[list[list[float]]]) -> list[float]:
    """[C, H, W] -> the mean square over channels at every position, divided by the length of the whole."""
    height, width = len(maps[0]), len(maps[0][0])
    energy = [math.fsum(c[y][x] ** 2 for c in maps) / len(maps) for y in range(height) for x in range(width)]
    length = math.hypot(*energy)
    return [value / length for value in energy]


@pytest.mark.parametrize("shape", SHAPES)
def test_at_is_the_mean_square_between_normalised_attention_maps(shape: tuple[int, ...]) -> None:
    images, channels, *size = shape
    student, teacher = normal(*shape, purpose="s"), 4 * normal(images, channels + 2, *size, purpose="t")
    squares = []
    for s_maps, t_maps in zip(student.tolist(), teacher.tolist(), strict=True):
        ours, theirs = attention_by_hand(s_maps), attention_by_hand(t_maps)
        squares += [(s - t) ** 2 for s, t in zip(ours, theirs, strict=True)]
    by_hand = math.fsum(squares) / len(squares)
    assert at_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-9, abs=1e-18)


def test_at_does_not_change_with_the_scale_of_a_map_or_the_order_of_channels() -> None:
    student, teacher = normal(3, 4, 5, 2, purpose="s"), normal(3, 6, 5, 2, purpose="t")
    value = at_loss(student, teacher)
    torch.testing.assert_close(at_loss(-7 * student, teacher.flip(1)), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1000.0])
def test_the_kd_ratio_of_at_is_its_weight(ratio: float) -> None:
    made = criterion({"name": "at", "balance": {"kd_ratio": ratio}})
    assert made(outputs("student"), outputs("teacher"), batch())["at"].weight == ratio
