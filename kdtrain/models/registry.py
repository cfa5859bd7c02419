"""The table of models by name: those of the setups. Every other classifier of torchvision or timm works by its name."""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from kdtrain.errors import shortened
from kdtrain.models import timm_source, torchvision_source
from kdtrain.models.lenet5 import LeNet5
from kdtrain.models.mlp import Mlp
from kdtrain.models.source import Source
from kdtrain.models.timm_source import Timm
from kdtrain.models.torchvision_source import Torchvision


@dataclass(frozen=True)
class Model:
    """A model and its defaults.

    Attributes:
        source: builds the network.
        default_weights: used if the recipe has no `weights`; "written": the recipe must have them.
        taps: {stage: module path in the encoder}; empty: they are measured (see `feature_taps`).
        batch_norm: False if the model has none.
        channels_last: default memory layout. On a CPU a training step at 64 pixels is 1.3 to 1.6 times as fast with it
            for depthwise convolutions, 1.0 to 1.2 times for others, and 0.83 times for BiT's standardized weights.
    """

    source: Source
    default_weights: Literal["imagenet", "written"] | None
    taps: dict[str, str] = field(default_factory=dict)
    batch_norm: bool = True
    channels_last: bool = True


RESNET = {"4": "layer1", "8": "layer2", "16": "layer3", "32": "layer4"}
RESNET_V2 = {"4": "stages.0", "8": "stages.1", "16": "stages.2", "32": "norm"}
BIT: dict[str, bool] = {"batch_norm": False, "channels_last": False}
LENET = {"2": "2", "4": "5"}

# Setups 1, 2 and 4 use IMAGENET1K_V1, which `pretrained=True` meant when their reference implementations were written.
# In setup 5 teacher and student start from BiT-M (Kolesnikov et al. 2020, arXiv:1912.11370: ImageNet-21k), as in the
# Flowers reference implementation and in Beyer et al. 2021; timm's name for it is goog_in21k.
MODELS: dict[str, Model] = {
    "lenet5_teacher": Model(LeNet5((6, 16), (120, 84)), None, LENET, batch_norm=False),  # 81,194 parameters
    "lenet5_student": Model(LeNet5((6, 12), (90, 64)), None, LENET, batch_norm=False),  # 46,164 parameters
    "lenet5_half": Model(LeNet5((3, 6), (45, 32)), None, LENET, batch_norm=False),  # half the widths of lenet5_student
    "mlp": Model(Mlp(), None, batch_norm=False, channels_last=False),
    "mobilenetv2": Model(
        Torchvision("mobilenet_v2", "IMAGENET1K_V1"),
        "imagenet",
        {"4": "features.3", "8": "features.6", "16": "features.13", "32": "features.18"},
    ),
    "resnet18": Model(Torchvision("resnet18", "IMAGENET1K_V1"), "imagenet", RESNET),
    "resnet50": Model(Torchvision("resnet50", "IMAGENET1K_V1"), "imagenet", RESNET),
    # It keeps torchvision's stochastic depth (up to 0.2), so its training is random even with dropout 0.
    "efficientnet_v2_s": Model(
        Torchvision("efficientnet_v2_s", "IMAGENET1K_V1"),
        "imagenet",
        {"4": "features.2", "8": "features.3", "16": "features.5", "32": "features.7"},
    ),
    # Stage 32 is the last ghost bottleneck, 160 channels. A 1x1 convolution to 960 channels follows it.
    "ghostnet": Model(
        Timm("ghostnet_100.in1k", "imagenet"),
        "imagenet",
        {"4": "blocks.2", "8": "blocks.4", "16": "blocks.6", "32": "blocks.8"},
    ),
    # The reference implementation is Keras' ResNet50V2: 23,773,798 parameters with 102 classes, here 23,709,350. Keras
    # counts 45,440 running means and variances, and its convolutions have 19,008 biases. It strides in the last block
    # of a stage, timm in the first. Filters, depth and pre-activation are the same.
    "resnet50v2": Model(Timm("resnetv2_50.a1h_in1k", "half"), None, RESNET_V2),
    "bit_resnet101x3": Model(Timm("resnetv2_101x3_bit.goog_in21k", "half"), "imagenet", RESNET_V2, **BIT),
    "bit_resnet50x1": Model(Timm("resnetv2_50x1_bit.goog_in21k", "half"), "imagenet", RESNET_V2, **BIT),
}


def model(name: str) -> Model:
    """Return the model of this name from this table, torchvision or timm, or raise ValueError with the nearest name."""
    if name in MODELS:
        return MODELS[name]
    if name in torchvision_source.names():
        return Model(Torchvision(name), "written")
    if timm_source.is_known(name):
        return Model(Timm(name), "written", channels_last="_bit" not in name)
    others = [*sorted(torchvision_source.names()), *timm_source.names()]
    near = [own for own in MODELS if name and own.startswith(name)]
    near = near or difflib.get_close_matches(name, MODELS, n=1) or difflib.get_close_matches(name, others, n=1)
    nearest = f"; nearest: {near[0]}" if near else ""
    raise ValueError(
        f"unknown model '{shortened(name)}'; choices: {', '.join(MODELS)} and every classifier of torchvision and"
        f" timm{nearest}"
    )


def known_model(name: str) -> str:
    """Return the name if there is such a model, or raise ValueError with the nearest name."""
    model(name)
    return name
