"""`stem: cifar` of torchvision's ResNets: He et al. 2016, section 4.2."""

import pytest
import torch
from made import config, images, made, shapes_only
from torch import nn

from kdtrain.errors import UserError
from kdtrain.models.build import build, forward_flops, parameter_count
from kdtrain.models.feature_taps import STRIDES, measure_taps

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "widths"),
    [("resnet18", (64, 128, 256, 512)), ("resnet34", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))],
)
def test_the_stages_are_named_by_the_strides_that_their_maps_have(model: str, widths: tuple[int, ...]) -> None:
    network = shapes_only(model, CIFAR, stem="cifar")
    assert network.stages == ("1", "2", "4", "8", "pool")
    assert network.stage_shapes(("1", "2", "4", "8")) == {
        stage: (width, 32 // int(stage), 32 // int(stage))
        for stage, width in zip(("1", "2", "4", "8"), widths, strict=True)
    }
    measured = measure_taps(network.encoder, 3, CIFAR[1:])  # it looks for STRIDES only
    assert measured == {stage: network._taps[stage] for stage in network._taps if int(stage) in STRIDES}


def test_it_is_a_convolution_of_stride_1_without_max_pooling_and_the_rest_is_the_librarys() -> None:
    own, library = made("resnet18", CIFAR, 10, stem="cifar"), made("resnet18", CIFAR, 10)
    first = own.encoder.conv1
    assert (first.kernel_size, first.stride, first.padding, first.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(own.encoder.maxpool, nn.Identity)
    fewer = 3 * 64 * (7 * 7 - 3 * 3)
    assert parameter_count(library) - parameter_count(own) == fewer
    assert own.state_dict().keys() == library.state_dict().keys()
    # kaiming_normal_ with fan_out, as torchvision initialises every convolution
    assert first.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_the_flops_are_those_of_the_usual_resnet18_for_cifar() -> None:
    assert forward_flops(shapes_only("resnet18", CIFAR, 10, stem="cifar"), CIFAR) == pytest.approx(
        2 * 0.556e9, rel=0.01
    )


def test_it_trains_on_small_and_grey_images() -> None:
    network = made("resnet18", (1, 16, 16), stem="cifar")
    network(images((1, 16, 16))).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_weights_of_the_other_stem_are_refused(tmp_path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.save(made("resnet18", CIFAR).state_dict(), file)
    with pytest.raises(UserError, match=r"does not fit resnet18: other shape or type encoder.conv1.weight"):
        build(config("resnet18", stem="cifar", weights={"file": str(file)}), CIFAR, 5, seed=0)
