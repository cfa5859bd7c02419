"""The setups' models as their reference implementations count and tap them; other models of torchvision and timm."""

import re

import pytest
import torch
from made import config, images, made, shapes_only

from kdtrain.errors import UserError
from kdtrain.models.build import build, forward_flops, parameter_count
from kdtrain.models.feature_taps import measure_taps
from kdtrain.models.freezing import has_randomness
from kdtrain.models.registry import MODELS, known_model

STAGES = ("4", "8", "16", "32", "pool")


@pytest.mark.parametrize(
    ("model", "classes", "parameters"),
    [
        ("resnet50", 2, 23_512_130),
        ("resnet18", 2, 11_177_538),
        ("bit_resnet101x3", 102, 382_416_678),
        ("bit_resnet50x1", 102, 23_709_350),
    ],
)
def test_the_parameters_are_those_of_the_reference_implementations(model: str, classes: int, parameters: int) -> None:
    assert parameter_count(shapes_only(model, classes=classes)) == parameters


def test_keras_resnet50v2_counts_running_statistics_and_convolution_biases_beside_our_parameters() -> None:
    network = shapes_only("resnet50v2", classes=102)
    running = sum(value.numel() for name, value in network.named_buffers() if "running" in name)
    # Keras: biases of the stem, of the four shortcuts and of each block's last convolution
    widths = [256, 512, 1024, 2048]
    biases = 64 + sum(widths) + sum(width * blocks for width, blocks in zip(widths, (3, 4, 6, 3), strict=True))
    assert (running, biases) == (45_440, 19_008)
    assert parameter_count(network) == 23_709_350
    assert parameter_count(network) + running + biases == 23_773_798


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("mobilenetv2", (24, 32, 96, 1280)),
        ("ghostnet", (24, 40, 112, 160)),
        ("resnet18", (64, 128, 256, 512)),
        ("resnet50", (256, 512, 1024, 2048)),
        ("efficientnet_v2_s", (48, 64, 160, 1280)),
        ("resnet50v2", (256, 512, 1024, 2048)),
        ("bit_resnet50x1", (256, 512, 1024, 2048)),
        ("bit_resnet101x3", (768, 1536, 3072, 6144)),
    ],
)
def test_the_stages_are_those_of_the_reference_implementations_at_any_resolution(
    model: str, channels: tuple[int, ...]
) -> None:
    network = shapes_only(model)
    for px in (224, 96, 64):
        network.image_shape = (3, px, px)
        assert network.stage_shapes(STAGES[:4]) == {
            stage: (width, px // int(stage), px // int(stage)) for stage, width in zip(STAGES, channels, strict=False)
        }


@pytest.mark.parametrize("model", [name for name, entry in MODELS.items() if entry.taps.keys() >= {"32"}])
def test_the_measured_stages_of_a_setups_model_have_the_shapes_of_its_table(model: str) -> None:
    network = shapes_only(model)
    expected = network.stage_shapes(STAGES)
    network._taps = measure_taps(network.encoder, 3, (224, 224))
    if model == "ghostnet":  # why it stands in the table: its 1x1 convolution after the blocks is the last map
        assert network.stage_shapes(("32",)) == {"32": (960, 7, 7)}
        expected.pop("32")
    assert {stage: network.stage_shapes((stage,))[stage] for stage in expected} == expected


@pytest.mark.parametrize(
    ("model", "channels"),
    [
        ("vgg11_bn", {"4": 256, "8": 512, "16": 512, "32": 512}),
        ("densenet121", {"4": 256, "8": 512, "16": 1024, "32": 1024}),
        ("mobilenet_v3_small", {"4": 16, "8": 24, "16": 48, "32": 576}),
        ("inception_v3", {"4": 192, "8": 288, "16": 768, "32": 2048}),
        ("squeezenet1_1", {"4": 128, "8": 256, "16": 512}),
        ("convnext_tiny", {"4": 96, "8": 192, "16": 384, "32": 768}),
        ("vit_b_16", {"16": 768}),
        ("resnet18.a1_in1k", {"4": 64, "8": 128, "16": 256, "32": 512}),
        ("mobilenetv4_conv_small", {"4": 32, "8": 64, "16": 96, "32": 960}),
        ("vit_tiny_patch16_224", {"16": 192}),
    ],
)
def test_other_models_of_torchvision_and_timm_work_by_their_names(model: str, channels: dict[str, int]) -> None:
    network = shapes_only(model)
    shapes = network.stage_shapes(network.stages)
    pooled = shapes.pop("pool")
    assert {stage: shape[0] for stage, shape in shapes.items()} == channels
    assert len(pooled) == 1
    assert network(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 5)


def test_a_model_of_another_library_trains_on_small_real_images() -> None:
    network = made("shufflenet_v2_x0_5")
    network(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_network_that_takes_one_size_only_is_refused_at_another() -> None:
    with pytest.raises(UserError, match=r"recipe\.student\.model: vit_b_32 cannot take images of 3x96x96 \(.*height"):
        made("vit_b_32", (3, 96, 96))


def test_the_flops_of_depthwise_convolutions_are_counted_by_group() -> None:
    assert forward_flops(shapes_only("mobilenetv2", classes=1000), (3, 224, 224)) == pytest.approx(0.6e9, rel=0.02)
    assert forward_flops(shapes_only("resnet18", classes=1000), (3, 224, 224)) == pytest.approx(3.63e9, rel=0.01)


def test_counting_flops_and_measuring_stages_leave_mode_and_buffers() -> None:
    network = made("mobilenetv2").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forward_flops(network, (3, 64, 64))
    network.stage_shapes(STAGES)
    assert network.training
    assert network.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("resnet81", "resnet18"), ("lenet5_studnet", "lenet5_student"), ("convnext_tinny", "convnext_tiny")],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown model '{wrong}'; choices: lenet5_teacher, .*; nearest: {nearest}$"):
        known_model(wrong)


def test_an_unknown_stage_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=re.escape("resnet18 has no stage '64'; it has 4, 8, 16, 32, pool")):
        shapes_only("resnet18").stage_shapes(("4", "64"))
    with pytest.raises(UserError, match=re.escape("lenet5_student has no stage '32'; it has 2, 4, pool")):
        made("lenet5_student", (1, 32, 32)).outputs(images((1, 32, 32)), ("32",))


def test_dropout_and_stochastic_depth_make_a_network_random() -> None:
    assert not has_randomness(made("resnet18"))
    assert not has_randomness(made("lenet5_student"))
    assert has_randomness(made("resnet18", dropout=0.2))
    assert has_randomness(made("resnet18", head="hidden"))
    assert not has_randomness(made("resnet18", head="hidden", dropout=0.0))
    assert has_randomness(shapes_only("efficientnet_v2_s"))  # torchvision's stochastic depth


@pytest.mark.parametrize(("model", "layer"), [("ghostnet", "encoder.conv_stem"), ("lenet5_student", "encoder.0")])
def test_equal_seeds_give_equal_weights_and_the_callers_random_numbers_stay(model: str, layer: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (build(config(model), (3, 32, 32), 5, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[f"{layer}.weight"], other[f"{layer}.weight"])
    heads = [name for name in one if name.startswith("head") and name.endswith("weight")]
    assert not any(torch.equal(one[name], other[name]) for name in heads)
