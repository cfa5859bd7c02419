"""Batch normalisation folded into convolutions: the same answers, and nothing of the network changed afterwards."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from made import RGB, images, made
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdtrain.models import folding
from kdtrain.models.classifier import Classifier
from kdtrain.models.folding import fold, folded
from kdtrain.models.registry import MODELS
from kdtrain.models.sync_batch_norm import over_global_batch

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

    def interrupted() -> None:
        with folded(network):
            assert not norms(network)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert dict(network.named_modules()) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_is_folded_does_not_depend_on_who_asks_first(
    mode: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "_known", {})
    network = lively(made("ghostnet"))
    with mode():
        fold(network)
    assert not norms(network)


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


class Doubled(nn.BatchNorm2d):
    """Does more than normalising."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


class Calling(nn.Module):
    """Modules by name, and what is computed with them."""

    def __init__(self, computed: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.computed = computed
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        return self.computed(self, images)


def convolution(channels: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, 1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8)


def residual(own: Any, images: Tensor) -> Tensor:
    given: Tensor = own.convolution(images)
    normalised: Tensor = own.norm(given) + given
    return normalised


def two_names() -> Calling:
    """It is called by the second."""
    one = convolution()
    return Calling(lambda own, images: own.norm(own.second(images)), first=one, second=one, norm=norm())


LEFT: dict[str, Callable[[], list[nn.Module]]] = {
    "something between": lambda: [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)],
    "something in place between": lambda: [nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8)],
    "other weights": lambda: [Weighed(3, 8, 3), nn.BatchNorm2d(8)],
    "another norm": lambda: [nn.Conv2d(3, 8, 3), Doubled(8)],
    "no statistics": lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)],
    "read twice": lambda: [Calling(residual, convolution=convolution(), norm=norm())],
    "called twice": lambda: [
        convolution(),
        Calling(lambda own, images: own.norm(own.c(own.norm(own.c(images)))), c=convolution(8), norm=norm()),
    ],
    "two norms": lambda: [
        Calling(
            lambda own, images: own.n1(own.c(images)) + own.n2(own.c(images)), c=convolution(), n1=norm(), n2=norm()
        )
    ],
    "two convolutions": lambda: [
        Calling(
            lambda own, images: own.norm(own.c1(images)) + own.norm(own.c2(images)),
            c1=convolution(),
            c2=convolution(),
            norm=norm(),
        )
    ],
    "two names": lambda: [two_names()],
}


@pytest.mark.parametrize("what", LEFT)
def test_what_cannot_be_folded_is_left(what: str) -> None:
    network = around(*LEFT[what]())
    before = dict(network.named_modules())
    assert fold(network) == {}
    assert dict(network.named_modules()) == before


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
    assert len(fold(network)) == 2 * 52
    assert fold(network) == {}
