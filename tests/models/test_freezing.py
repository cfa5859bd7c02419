"""What trains and what stays, after real steps of SGD."""

import pytest
import torch
from made import images, made
from torch import nn
from torch.nn import functional

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.freezing import is_norm


def trained(network: Classifier, steps: int = 2) -> set[str]:
    """The names of parameters and buffers that changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    network.train()
    for step in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(images(seed=step)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def buffers(network: Classifier) -> set[str]:
    return {name for name, _ in network.encoder.named_buffers(prefix="encoder")}


MODELS = ["resnet18", "ghostnet", "resnet50v2"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("statistics", ["update", "keep"])
def test_with_a_frozen_encoder_only_the_head_trains(model: str, statistics: str) -> None:
    network = made(model, freeze="encoder", batch_norm_statistics=statistics)
    expected = {"head.1.weight", "head.1.bias"} | (buffers(network) if statistics == "update" else set())
    assert trained(network) == expected
    assert network.frozen == {name for name, _ in network.encoder.named_parameters(prefix="encoder")}


def norm_parameters(network: Classifier) -> set[str]:
    return {
        f"encoder.{name}.{own}"
        for name, module in network.encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
        for own in ("weight", "bias")
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("statistics", ["update", "keep"])
def test_encoder_but_norm_trains_scale_and_shift_of_the_encoders_norms_too(model: str, statistics: str) -> None:
    network = made(model, freeze="encoder_but_norm", batch_norm_statistics=statistics)
    expected = {"head.1.weight", "head.1.bias"} | norm_parameters(network)
    assert {name for name, _ in network.named_parameters()} - network.frozen == expected
    changed = trained(network)
    assert changed & buffers(network) == (buffers(network) if statistics == "update" else set())
    # kept statistics of random weights let a few of GhostNet's gradients vanish in float32
    assert changed - buffers(network) <= expected
    assert len(changed - buffers(network)) > 0.9 * len(expected)


@pytest.mark.parametrize("statistics", ["update", "keep"])
def test_nothing_frozen_trains_everything(statistics: str) -> None:
    network = made("resnet18", batch_norm_statistics=statistics)
    expected = {name for name, _ in network.named_parameters()} | (
        buffers(network) if statistics == "update" else set()
    )
    assert trained(network) == expected
    assert network.frozen == frozenset()


def test_a_hidden_heads_batch_norm_trains_and_counts_whatever_is_frozen() -> None:
    network = made("resnet18", head="hidden", freeze="encoder")
    changed = trained(network)
    assert {name for name in changed if "running" in name} == {"head.2.running_mean", "head.2.running_var"}
    assert {name for name, _ in network.head.named_parameters(prefix="head")} <= changed


def test_kept_statistics_stay_kept_through_evaluation_and_copies() -> None:
    network = made("resnet18", freeze="encoder")
    network.eval()
    network.train()
    assert network.training
    assert not any(m.training for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.encoder.layer1.training


def test_lenet5s_convolutions_freeze_and_its_linear_layers_train() -> None:
    network = made("lenet5_student", freeze="encoder")
    assert trained(network) == {name for name, _ in network.head.named_parameters(prefix="head")}


def test_a_network_without_norms_is_refused_as_encoder_but_norm() -> None:
    with pytest.raises(UserError, match="squeezenet1_1 has no normalization layers: freeze must be none or encoder"):
        made("squeezenet1_1", freeze="encoder_but_norm")


def test_norms_are_told_from_convolutions_and_containers() -> None:
    assert all(map(is_norm, (nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.RMSNorm(3))))
    assert not any(map(is_norm, (nn.Conv2d(3, 3, 1), nn.Linear(3, 3), nn.Sequential(nn.BatchNorm2d(3)))))
