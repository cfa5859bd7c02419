"""rkd against loops over pairs and triplets: equations 5-9 of Park et al. 2019."""

import math

import pytest
import torch
from losses import normal, smooth_l1, softened

from kdtrain.methods.rkd import rkd_angle_loss, rkd_distance_loss, rkd_distance_loss_published

SHAPES = [(2, 3), (5, 8), (7, 2), (4, 200)]
LOSSES = [rkd_distance_loss, rkd_angle_loss]


def pair(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(*shape, purpose="s"), 5 * normal(shape[0], shape[1] + 1, purpose="t")


def distances_by_hand(rows: list[list[float]]) -> list[float]:
    """All N^2 distances in units of the mean positive one."""
    distances = [math.dist(a, b) for a in rows for b in rows]
    positive = [distance for distance in distances if distance > 0]
    mean = math.fsum(positive) / len(positive)
    return [distance / mean for distance in distances]


def compared(ours: list[float], theirs: list[float]) -> float:
    return math.fsum(smooth_l1(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def cosines_by_hand(rows: list[list[float]]) -> list[float]:
    """Of the angle at i between j and k, for all N^3; 0 where an image is compared with itself."""

    def cosine(i: list[float], j: list[float], k: list[float]) -> float:
        first, second = [a - b for a, b in zip(i, j, strict=True)], [a - b for a, b in zip(i, k, strict=True)]
        lengths = math.hypot(*first) * math.hypot(*second)
        return math.fsum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0

    return [cosine(i, j, k) for i in rows for j in rows for k in rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_rkd_distance_is_smooth_l1_between_relative_distances(shape: tuple[int, int]) -> None:
    student, teacher = pair(shape)
    by_hand = compared(distances_by_hand(student.tolist()), distances_by_hand(teacher.tolist()))
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_rkd_angle_is_smooth_l1_between_cosines_of_triplets(shape: tuple[int, int]) -> None:
    student, teacher = pair(shape)
    by_hand = compared(cosines_by_hand(student.tolist()), cosines_by_hand(teacher.tolist()))
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(by_hand, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("temperature", [1.5, 4.0])
@pytest.mark.parametrize("shape", [(5, 10), (3, 2), (4, 200)])
def test_published_rkd_compares_logarithms_with_probabilities(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = 3 * normal(*shape, purpose="s"), 3 * normal(*shape, purpose="t")
    logs = [[math.log(p) for p in softened(row, temperature)] for row in student.tolist()]
    probabilities = [softened(row, temperature) for row in teacher.tolist()]
    by_hand = compared(distances_by_hand(logs), distances_by_hand(probabilities))
    ours = rkd_distance_loss_published(student, teacher, temperature=temperature)
    assert ours.item() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_rkd_does_not_change_with_scale_shift_rotation_or_order_of_the_features(loss) -> None:
    student, teacher = pair((6, 4))
    value = loss(student, teacher)
    turn = torch.linalg.qr(normal(4, 4, purpose="turn")).Q
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = ((37 * student, teacher), (student, teacher / 11), (student + 3, teacher - 8), (student @ turn, teacher))
    for same in (*moved, (student[order], teacher[order])):
        torch.testing.assert_close(loss(*same), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_images_have_distance_zero_and_no_gradient_from_one_another(loss, dtype: torch.dtype) -> None:
    student = normal(5, 8, purpose="s", dtype=dtype)
    student[1] = student[0]
    student.requires_grad_()
    teacher = normal(5, 3, purpose="t", dtype=dtype)
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 1


@pytest.mark.parametrize("loss", LOSSES)
def test_one_image_or_all_equal_images_give_a_finite_loss_and_no_gradient(loss) -> None:
    teacher = normal(4, 3, purpose="t")
    for student in (normal(1, 8, purpose="s"), normal(1, 8, purpose="s").repeat(4, 1)):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher[: len(leaf)])
        assert (value == 0) if len(leaf) == 1 else (value > 0)
        assert torch.autograd.grad(value, leaf)[0].abs().max() == 0
