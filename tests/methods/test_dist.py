"""dist against loops: equations 6-10 of Huang et al. 2022."""

import math
import statistics

import pytest
import torch
from losses import normal, softened

from kdtrain.methods.dist import dist_loss

SHAPES = [(2, 3), (7, 2), (5, 10), (3, 200)]


def inputs(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * normal(*shape, purpose="s"), 3 * normal(*shape, purpose="t")


def correlation(a: list[float], b: list[float]) -> float:
    """Pearson's; a class that hardly any image may be, so that the lengths' product is below 1e-8, counts less."""
    a = [value - statistics.fmean(a) for value in a]
    b = [value - statistics.fmean(b) for value in b]
    lengths = math.hypot(*a) * math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / max(lengths, 1e-8)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_dist_is_one_less_the_correlations_within_images_and_within_classes(
    shape: tuple[int, int], temperature: float, weights: tuple[float, float]
) -> None:
    student, teacher = inputs(shape)
    ours = [softened(row, temperature) for row in student.tolist()]
    theirs = [softened(row, temperature) for row in teacher.tolist()]
    inter = statistics.fmean(1 - correlation(s, t) for s, t in zip(ours, theirs, strict=True))
    columns = zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    intra = statistics.fmean(1 - correlation(s, t) for s, t in columns)
    beta, gamma = weights
    value = dist_loss(student, teacher, beta=beta, gamma=gamma, temperature=temperature).item()
    assert value == pytest.approx(temperature**2 * (beta * inter + gamma * intra), rel=1e-9)


def test_between_two_classes_only_the_part_within_classes_has_a_gradient() -> None:
    student, teacher = inputs((7, 2))
    leaf = student.requires_grad_()
    inter = dist_loss(leaf, teacher, beta=1.0, gamma=0.0, temperature=1.0)
    assert torch.autograd.grad(inter, leaf)[0].abs().max() < 1e-12
    intra = dist_loss(leaf, teacher, beta=0.0, gamma=1.0, temperature=1.0)
    assert torch.autograd.grad(intra, leaf)[0].abs().max() > 1e-3
