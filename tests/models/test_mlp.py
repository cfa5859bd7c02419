"""The multilayer perceptron: its layers, its dropout, and max-norm against each row scaled by hand."""

import math
from itertools import pairwise

import pytest
import torch
from made import config, images, made
from torch import nn

from kdtrain.errors import UserError
from kdtrain.models.build import build, forward_flops, parameter_count
from kdtrain.models.freezing import has_randomness

MNIST = (1, 28, 28)


@pytest.mark.parametrize(("hidden", "parameters"), [([1200, 1200], 2_395_210), ([800, 800], 1_276_810), ([5], 3_985)])
def test_the_parameters_and_flops_are_counted_by_hand(hidden: list[int], parameters: int) -> None:
    network = made("mlp", MNIST, 10, hidden=hidden)
    widths = [784, *hidden, 10]
    products = sum(inputs * outputs for inputs, outputs in pairwise(widths))
    assert parameter_count(network) == products + sum(widths[1:]) == parameters
    assert forward_flops(network, MNIST) == 2 * products


def test_the_logits_are_those_of_linear_layers_and_relu_on_the_pixels() -> None:
    network, pixels = made("mlp", (3, 5, 4), 7, hidden=[6, 8]).eval(), images((3, 5, 4))
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    features = pixels.reshape(4, 60)
    for layer in layers[:-1]:
        features = (features @ layer.weight.T + layer.bias).clamp(min=0)
    logits, stages = network.outputs(pixels, ("pool",))
    torch.testing.assert_close(stages["pool"], features)
    torch.testing.assert_close(logits, features @ layers[-1].weight.T + layers[-1].bias)


def test_pixels_and_every_hidden_layer_have_dropout_of_their_own_and_the_logits_none() -> None:
    network = made("mlp", MNIST, 10, hidden=[6, 8], input_dropout=0.2, dropout=0.5)
    kinds = [(type(each).__name__, getattr(each, "p", None)) for each in network.modules() if not list(each.children())]
    layer = [("Linear", None), ("ReLU", None), ("Dropout", 0.5)]
    assert kinds == [("Flatten", None), ("Dropout", 0.2), *layer, *layer, ("Linear", None)]


@pytest.mark.parametrize("dropout", [{"input_dropout": 0.1}, {"dropout": 0.1}, {}])
def test_either_dropout_makes_the_network_random(dropout: dict[str, float]) -> None:
    assert has_randomness(made("mlp", MNIST, hidden=[6], **dropout)) == bool(dropout)


def test_it_has_no_maps_but_the_input_of_its_last_layer() -> None:
    network = made("mlp", (3, 8, 8), hidden=[6, 9])
    assert network.stages == ("pool",)
    assert network.stage_shapes(("pool",)) == {"pool": (9,)}
    with pytest.raises(UserError, match="mlp has no stage '16'; it has pool"):
        network.stage_shapes(("16",))


def test_max_norm_scales_long_rows_down_to_it_and_leaves_the_others_and_the_biases_alone() -> None:
    network = made("mlp", (1, 2, 2), 3, hidden=[5], max_norm=1.5)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(number)))
            layer.bias.fill_(9.0)
    before = [layer.weight.tolist() for layer in layers]
    network.constrain()
    norms = [math.hypot(*row) for rows in before for row in rows]
    assert 0 < sum(norm > 1.5 for norm in norms) < len(norms)
    for layer, rows in zip(layers, before, strict=True):
        assert layer.bias.tolist() == [9.0] * len(rows)
        for row, old in zip(layer.weight.tolist(), rows, strict=True):
            factor = min(1.0, 1.5 / math.hypot(*old))
            assert row == (old if factor == 1 else pytest.approx([factor * weight for weight in old], rel=1e-6))


def test_without_max_norm_or_if_they_are_frozen_weights_of_any_length_stay() -> None:
    free = made("mlp", (1, 2, 2), hidden=[5])
    frozen = made("mlp", (1, 2, 2), hidden=[5], max_norm=0.1, freeze="encoder")
    for network in (free, frozen):
        first, last = (module for module in network.modules() if isinstance(module, nn.Linear))
        before = first.weight.clone()
        network.constrain()
        assert torch.equal(first.weight, before)
    assert last.weight.norm(dim=1).max() <= 0.1 + 1e-6


def test_a_file_with_other_hidden_layers_is_refused(tmp_path) -> None:
    file = tmp_path / "mlp.pth"
    torch.save(made("mlp", MNIST, hidden=[6]).state_dict(), file)
    same = build(config("mlp", hidden=[6], weights={"file": str(file)}), MNIST, 5, seed=1)
    assert torch.equal(same(images(MNIST)), made("mlp", MNIST, hidden=[6])(images(MNIST)))
    with pytest.raises(UserError, match="does not fit mlp: other shape or type encoder"):
        build(config("mlp", hidden=[7], weights={"file": str(file)}), MNIST, 5, seed=1)
