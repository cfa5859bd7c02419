"""LeNet5 of setup 3."""

import pytest
import torch
from made import made
from torch import nn

from kdtrain.errors import UserError
from kdtrain.models.build import forward_flops, parameter_count

MNIST = (1, 32, 32)
MODELS = ["lenet5_teacher", "lenet5_student"]


def test_pooling_before_relu_gives_the_bits_of_the_reference_implementation() -> None:
    own = made("lenet5_teacher", MNIST, channels_last=False).encoder
    documents = nn.Sequential(*(own[i] for i in (0, 2, 1, 3, 5, 4, 6)))  # each ReLU, then its pooling
    images = (torch.rand(8, *MNIST, generator=torch.Generator().manual_seed(0)) * 8).round() / 8  # with ties
    weights = [own[0].weight, own[3].weight]
    outputs = [encoder(images) for encoder in (own, documents)]
    gradients = [torch.autograd.grad(output.square().sum(), weights) for output in outputs]
    assert torch.equal(*outputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "parameters"), [("lenet5_teacher", 81_194), ("lenet5_student", 46_164)])
def test_the_parameters_are_those_of_the_reference_implementation(name: str, parameters: int) -> None:
    assert parameter_count(made(name, MNIST, 10)) == parameters


@pytest.mark.parametrize(
    ("name", "maps", "hidden"), [("lenet5_teacher", (6, 16), (120, 84)), ("lenet5_student", (6, 12), (90, 64))]
)
def test_the_flops_are_two_per_multiply_add_counted_by_hand(
    name: str, maps: tuple[int, int], hidden: tuple[int, int]
) -> None:
    convolutions = 30 * 30 * maps[0] * 9 + 13 * 13 * maps[1] * maps[0] * 9  # 32 -> 30 -> 15 -> 13 -> 6
    linear = maps[1] * 6 * 6 * hidden[0] + hidden[0] * hidden[1] + hidden[1] * 10
    assert forward_flops(made(name, MNIST, 10), MNIST) == 2 * (convolutions + linear)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 10, 10), 2), ((3, 17, 23), 7), (MNIST, 10)])
def test_images_of_any_size_from_10_pixels_give_a_logit_for_each_class(
    name: str, shape: tuple[int, int, int], classes: int
) -> None:
    assert made(name, shape, classes)(torch.zeros(4, *shape)).shape == (4, classes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 32, 8)])
def test_too_small_images_are_refused_with_the_size(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"recipe.data.resolution: LeNet5 needs at least 10 px, got {min(shape[1:])}"):
        made(name, shape)
