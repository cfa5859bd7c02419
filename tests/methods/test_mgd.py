"""mgd against loops: equations 2-4 of Yang et al. 2022, and the random mask of an image."""

import itertools

import pytest
import torch
from losses import CONFIGS, STUDENT, TEACHER, batch, criterion, loss_and_gradients, normal, outputs
from torch import nn

from kdtrain.methods.mgd import MgdCriterion, channel_mask


def padded(maps: list[list[list[float]]], c: int, y: int, x: int) -> float:
    inside = 0 <= y < len(maps[c]) and 0 <= x < len(maps[c][0])
    return maps[c][y][x] if inside else 0.0


def convolved(maps: list[list[list[float]]], layer: nn.Conv2d) -> list[list[list[float]]]:
    """Compute a convolution of odd size with same padding, of one image."""
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    size = len(weight[0][0])
    window = list(itertools.product(range(len(maps)), range(size), range(size)))
    return [
        [
            [
                bias[o]
                + sum(weight[o][c][i][j] * padded(maps, c, y + i - size // 2, x + j - size // 2) for c, i, j in window)
                for x in range(len(maps[0][0]))
            ]
            for y in range(len(maps[0]))
        ]
        for o in range(len(weight))
    ]


@pytest.mark.parametrize("shapes", [((2, 3, 2), (3, 3, 2)), ((3, 2, 5), (3, 2, 5)), ((4, 1, 1), (1, 1, 1))])
@pytest.mark.parametrize("count", [1, 3])
def test_mgd_is_the_squared_error_of_the_generated_map_by_the_images(
    count: int, shapes: tuple[tuple[int, ...], ...]
) -> None:
    (student_shape, teacher_shape), written = shapes, CONFIGS["mgd"] | {"stage": "16"}
    made = criterion(written, student_shapes={"16": student_shape}, teacher_shapes={"16": teacher_shape})
    assert isinstance(made, MgdCriterion)
    student, teacher, of = outputs("student", count), outputs("teacher", count), batch(count, step=7)
    student.features["16"] = normal(count, *student_shape, purpose="s")
    teacher.features["16"] = normal(count, *teacher_shape, purpose="t")
    mask = channel_mask(of, teacher_shape[0], 0.4)[:, :, 0, 0].tolist()
    total = 0.0
    for n in range(count):
        maps = student.features["16"][n].tolist()
        if student_shape[0] != teacher_shape[0]:
            maps = convolved(maps, made.align)
        maps = [[[value * mask[n][c] for value in row] for row in maps[c]] for c in range(len(maps))]
        hidden = [[[max(value, 0.0) for value in row] for row in rows] for rows in convolved(maps, made.generation[0])]
        generated = torch.tensor(convolved(hidden, made.generation[2]), dtype=torch.float64)
        total += float((generated - teacher.features["16"][n]).square().sum())
    terms = made(student, teacher, of)
    assert terms["mgd"].value.item() == pytest.approx(0.01 * total / count, rel=1e-9)
    elements = count * teacher.features["16"][0].numel()
    assert terms["mgd_elementwise"].value.item() == pytest.approx(total / elements, rel=1e-9)


def test_an_images_mask_depends_on_its_index_the_seed_and_the_step_only() -> None:
    def masks(*indices: int, **other: int) -> torch.Tensor:
        return channel_mask(batch(len(indices), indices=torch.tensor(indices), **other), 64, 0.5)

    together = masks(5, 9, 2)
    assert together.shape == (3, 64, 1, 1)
    assert torch.equal(together[1:2], masks(9))
    assert torch.equal(together.flip(0), masks(2, 9, 5))
    assert not torch.equal(masks(5), masks(9))
    assert not torch.equal(masks(5), masks(5, seed=1))
    assert not torch.equal(masks(5), masks(5, step=1))


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.7])
def test_the_mask_ratio_is_the_probability_that_a_channel_is_hidden(ratio: float) -> None:
    mask = channel_mask(batch(50), 400, ratio)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert 1 - mask.mean().item() == pytest.approx(ratio, abs=0.01)


def test_nothing_is_masked_in_evaluation_mode() -> None:
    arguments = outputs("student"), outputs("teacher"), batch()
    masked, whole = (criterion(CONFIGS["mgd"] | {"mask_ratio": ratio}) for ratio in (0.4, 0.0))
    whole.load_state_dict(masked.state_dict())
    assert masked(*arguments)["mgd"].value != whole(*arguments)["mgd"].value
    masked.eval()
    assert torch.equal(masked(*arguments)["mgd"].value, whole(*arguments)["mgd"].value)


def test_channels_are_aligned_only_where_they_differ() -> None:
    assert isinstance(criterion(CONFIGS["mgd"]).align, nn.Conv2d)
    assert isinstance(criterion(CONFIGS["mgd"], teacher_shapes=STUDENT).align, nn.Identity)
    parameters = sum(p.numel() for p in criterion(CONFIGS["mgd"]).parameters())
    own, wanted = STUDENT["32"][0], TEACHER["32"][0]
    assert parameters == (own + 1) * wanted + 2 * (9 * wanted + 1) * wanted


def test_every_parameter_of_the_generator_gets_a_gradient() -> None:
    made = criterion(CONFIGS["mgd"])
    _, gradients = loss_and_gradients(made, outputs("student", grad=True), outputs("teacher"), batch())
    assert all(gradient.abs().max() > 0 for gradient in gradients[-len(list(made.parameters())) :])
