"""Batch normalisation folded into convolutions: the same answers, and nothing of the network changed afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from made import RGB, images, made
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtrain.models import MODELS, Classifier
from kdtrain.models.batch_norm import over_global_batch
from kdtrain.models.folding import fold, folded

CPU = torch.device("cpu")


def lively(network: Classifier) -> Classifier:
    """In evaluation mode, with statistics, scales and shifts as if it had been trained."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms(network):
            for values, least in (
                (norm.running_mean, -0.5),
                (norm.running_var, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -0.5),
            ):
                if values is not None:
                    values.copy_(least + torch.rand(values.shape, generator=draw))
    return network.eval()


def norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def around(*layers: nn.Module) -> Classifier:
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return lively(Classifier(f"network of {layers}", encoder, nn.Linear(8, 5), RGB))


# of ResNet50V2 17 norms come before a convolution and behind a sum
@pytest.mark.parametrize(
    ("model", "kept"),
    [(name, 17 if name == "resnet50v2" else 0) for name, entry in MODELS.items() if entry.batch_norm],
)
@torch.inference_mode()
def test_answers_and_stages_are_the_same_and_the_network_is_itself_again(model: str, kept: int) -> None:
    network = lively(made(model))
    modules, state = dict(network.named_modules()), dict(network.state_dict())
    logits, features = network.outputs(images(), network.stages)
    with folded(network):
        assert len(norms(network)) == kept
        others, other_features = network.outputs(images(), network.stages)
        assert not torch.equal(logits, others), "it has been folded"
        for value, other in ((logits, others), *((features[stage], other_features[stage]) for stage in features)):
            assert (other - value).abs().max() < 1e-4 * value.abs().max()
    assert dict(network.named_modules()) == modules
    again = dict(network.state_dict())
    assert list(again) == list(state)
    assert all(again[name].data_ptr() == value.data_ptr() for name, value in state.items())
    assert torch.equal(network(images()), logits)


def test_it_is_itself_again_after_an_error() -> None:
    network = lively(made("resnet18"))
    before = dict(network.named_modules())
    with pytest.raises(KeyboardInterrupt), folded(network):
        raise KeyboardInterrupt
    assert dict(network.named_modules()) == before


def test_what_is_folded_has_the_weights_of_that_time() -> None:
    network = around(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with torch.inference_mode(), folded(network):
        before = network(images())
    with torch.no_grad():
        norms(network)[0].running_mean.add_(1.0)
        expected = network(images())
        assert not torch.allclose(before, expected, atol=1e-2)
        with folded(network):
            torch.testing.assert_close(network(images()), expected)


class Weighed(nn.Conv2d):
    """Its weights are not those that it computes with."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight * 2, self.bias)


class Residual(nn.Module):
    """What its convolution gives is read by the sum, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        given = self.convolution(images)
        normalised: Tensor = self.norm(given) + given
        return normalised


class Twice(nn.Module):
    """Normalises what it gives again by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.convolution(self.norm(self.convolution(images))))
        return normalised


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)],
        lambda: [Weighed(3, 8, 3), nn.BatchNorm2d(8)],
        lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)],
        lambda: [Residual()],
        lambda: [nn.Conv2d(3, 8, 3), Twice()],
    ],
    ids=["something between", "other weights", "no statistics", "read twice", "called twice"],
)  # fmt: skip
def test_what_cannot_be_folded_is_left(layers: Callable[[], list[nn.Module]]) -> None:
    network = around(*layers())
    assert fold(network) == {}
    assert len(norms(network)) == 1


def test_a_compiled_network_and_what_is_no_classifier_are_left() -> None:
    network = made("resnet18", compile=True).eval()
    assert fold(network) == {}
    assert fold(network.encoder) == {}


@torch.inference_mode()
def test_a_norm_over_several_workers_is_folded_as_on_one() -> None:
    network = lively(made("ghostnet"))
    with folded(network):
        expected = network(images())
    over_global_batch(network, CPU)
    with folded(network):
        assert not norms(network)
        assert torch.equal(network(images()), expected)
    assert all(type(norm).__name__ == "ReducedBatchNorm" for norm in norms(network))


def test_folding_again_changes_nothing() -> None:
    network = lively(made("mobilenetv2"))
    fold(network)
    assert fold(network) == {}
