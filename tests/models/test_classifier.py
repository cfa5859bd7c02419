"""The Classifier: normalisation, stages of one forward, heads."""

import copy

import pytest
import torch
from made import RGB, images, made
from torch import nn
from torchvision.transforms.functional import normalize

from kdtrain.errors import UserError
from kdtrain.models.classifier import Classifier
from kdtrain.models.feature_taps import dry_forward

STAGES = ("4", "8", "16", "32", "pool")


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2", "ghostnet", "lenet5_student"])
def test_outputs_are_one_forwards_logits_and_features(model: str) -> None:
    network = made(model).eval()
    logits, features = network.outputs(images(), network.stages)
    assert torch.equal(logits, network(images()))
    assert torch.equal(logits, network.head(features["pool"]))
    assert features.keys() == set(network.stages)
    assert {stage: value.shape[1:] for stage, value in features.items()} == network.stage_shapes(network.stages)


def test_resnets_features_are_those_of_a_forward_by_hand() -> None:
    network = made("resnet18", normalization="none").eval()
    encoder = network.encoder
    value = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images()))))
    _, features = network.outputs(images(), STAGES)
    for stage, layer in zip(STAGES, (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4), strict=False):
        value = layer(value)
        assert torch.equal(features[stage], value)
    torch.testing.assert_close(features["pool"], value.mean((2, 3)))


def test_no_hook_outlives_its_forward_even_if_that_fails() -> None:
    network = made("resnet18").eval()
    network.outputs(images(), STAGES)
    with pytest.raises(RuntimeError):
        network.outputs(images((3, 0, 64)), STAGES)
    with pytest.raises(UserError):
        network.outputs(images(), ("4", "5"))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_deep_copy_records_its_own_features_and_leaves_the_originals() -> None:
    network = made("resnet18").eval()
    _, features = network.outputs(images(), STAGES)
    kept = {stage: value.clone() for stage, value in features.items()}
    double = copy.deepcopy(network)
    _, others = double.outputs(images(seed=1), STAGES)
    assert all(torch.equal(features[stage], kept[stage]) for stage in STAGES)
    assert not any(torch.equal(others[stage], kept[stage]) for stage in STAGES)


def test_gradients_flow_through_features_to_the_encoder() -> None:
    network = made("resnet18")
    _, features = network.outputs(images(), ("16", "pool"))
    (features["16"].square().mean() + features["pool"].mean()).backward()
    assert network.encoder.conv1.weight.grad is not None
    assert network.head[1].weight.grad is None


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("half", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ("none", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ],
)
def test_normalisation_is_torchvisions(kind: str, mean: list[float], std: list[float]) -> None:
    network = made("resnet18", normalization=kind)
    view = images()
    assert torch.equal(network.normalize(view), normalize(images(), mean, std))
    assert torch.equal(view, images())
    assert not {"mean", "std"} & network.state_dict().keys()


def test_a_grey_channel_is_repeated_if_the_network_takes_three() -> None:
    grey = images((1, 64, 64))
    network = made("resnet18", (1, 64, 64)).eval()
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))
    assert network.stage_shapes(("4",)) == {"4": (64, 16, 16)}
    assert made("lenet5_student", (1, 32, 32)).encoder[0].in_channels == 1


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="resnet18 takes images of 3 channels or one, got 4"):
        made("resnet18", (4, 64, 64))


def test_a_linear_head_is_dropout_and_one_linear_layer() -> None:
    head = made("mobilenetv2", dropout=0.2).head
    assert [type(layer) for layer in head] == [nn.Dropout, nn.Linear]
    assert head[0].p == 0.2
    assert not any(isinstance(layer, nn.Dropout) for layer in made("mobilenetv2").encoder.modules())


def test_a_hidden_head_is_setup_1s() -> None:
    head = made("resnet18", head="hidden", classes=10).head
    assert [type(layer) for layer in head] == [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[4].in_features, head[4].out_features) == (
        512,
        1000,
        1000,
        10,
    )
    assert head[1].p == 0.5


def test_dropout_acts_in_training_only() -> None:
    network = made("resnet18", dropout=0.5, batch_norm_statistics="keep")
    features = network.eval().outputs(images(), ("pool",))[1]["pool"]
    trained = network.train().outputs(images(), ("pool",))
    assert torch.equal(trained[1]["pool"], features)  # pool is before the dropout
    assert not torch.equal(network(images()), network(images()))
    assert torch.equal(network.eval()(images()), network.eval()(images()))


class Reader(nn.Module):
    """A module that reads a value of its input, which is impossible on the meta device."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((2, 3)) * (1 + bool(maps.sum().item() > 0))


def test_a_network_that_reads_values_is_measured_by_a_real_forward() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), Reader())
    network = Classifier("reader", encoder, nn.Linear(8, 2), RGB).train()
    assert network.stage_shapes(("4", "pool")) == {"4": (8, 16, 16), "pool": (8,)}
    assert dry_forward(network, RGB).device.type == "cpu"
    assert network.training
    assert encoder[1].num_batches_tracked == 0
