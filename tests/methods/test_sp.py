"""sp against loops: equations 1-4 of Tung & Mori 2019."""

import math

import pytest
import torch
from losses import CONFIGS, batch, criterion, normal, outputs
from torch.nn import functional

from kdtrain.methods.sp import sp_loss

SHAPES = [(2, 3, 2, 2), (5, 4, 3, 7), (7, 1, 4, 1), (3, 200, 1, 1)]


def rows_by_hand(maps: torch.Tensor, norm: int) -> list[list[float]]:
    """Inner products of all pairs of images, each row divided by its norm."""
    flat = maps.flatten(1).tolist()
    gram = [[math.fsum(a * b for a, b in zip(i, j, strict=True)) for j in flat] for i in flat]
    lengths = [math.fsum(abs(value) ** norm for value in row) ** (1 / norm) for row in gram]
    return [[value / length for value in row] for row, length in zip(gram, lengths, strict=True)]


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_sp_is_the_squared_distance_of_similarity_matrices_by_n_squared(shape: tuple[int, ...], norm: int) -> None:
    images, channels, height, width = shape
    student, teacher = normal(*shape, purpose="s"), 4 * normal(images, channels + 2, height + 1, width, purpose="t")
    ours, theirs = rows_by_hand(student, norm), rows_by_hand(teacher, norm)
    squares = [(ours[i][j] - theirs[i][j]) ** 2 for i in range(images) for j in range(images)]
    value = sp_loss(student, teacher, row_norm=norm).item()
    assert value == pytest.approx(math.fsum(squares) / images**2, rel=1e-9, abs=1e-18)


def test_published_sp_is_what_the_documents_code_computes() -> None:
    student, teacher = normal(6, 4, 3, 2, purpose="s").relu(), normal(6, 5, 3, 2, purpose="t").relu()

    def document(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s, t = s.view(s.size(0), -1), t.view(t.size(0), -1)
        return functional.mse_loss(
            functional.normalize(torch.mm(s, s.t()), 1), functional.normalize(torch.mm(t, t.t()), 1)
        )

    torch.testing.assert_close(sp_loss(student, teacher, row_norm=1), document(student, teacher), rtol=1e-12, atol=0)
    made = criterion(CONFIGS["sp published"] | {"stages": ["16"]})
    made_of = outputs("student", 6), outputs("teacher", 6)
    torch.testing.assert_close(
        made(*made_of, batch(6))["sp"].value, document(*(of.features["16"] for of in made_of)), rtol=1e-12, atol=0
    )


def test_rows_of_l1_norm_make_sp_about_58_times_smaller_at_64_rectified_images() -> None:
    student, teacher = normal(64, 64, 7, 7, purpose="s").relu(), normal(64, 96, 7, 7, purpose="t").relu()
    ratio = sp_loss(student, teacher) / sp_loss(student, teacher, row_norm=1)
    assert 50 < ratio < 66


@pytest.mark.parametrize("norm", [1, 2])
def test_sp_does_not_change_with_scale_or_with_the_order_of_images_or_features(norm: int) -> None:
    student, teacher = normal(5, 4, 3, 2, purpose="s"), normal(5, 6, 2, 2, purpose="t")
    value = sp_loss(student, teacher, row_norm=norm)
    order = torch.tensor([4, 2, 0, 1, 3])
    for same in ((9 * student, teacher), (student[order], teacher[order]), (student.flip(1, 2), teacher.flip(3))):
        torch.testing.assert_close(sp_loss(*same, row_norm=norm), value, rtol=1e-12, atol=0)
