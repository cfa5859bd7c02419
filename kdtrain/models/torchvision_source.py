"""Classifiers of torchvision (https://docs.pytorch.org/vision/stable/models.html) without their final layer."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.source import Backbone, ImageShape

TIMEOUT_S = 10.0
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision builds these two with auxiliary classifiers, which only their authors' training reads. transform_input is
# True as with ImageNet weights, so that random and loaded weights see the same pixels.
INCEPTIONS = ("googlenet", "inception_v3")
RESNETS = ("resnet", "resnext", "wide_resnet")
CIFAR_TAPS = {"1": "layer1", "2": "layer2", "4": "layer3", "8": "layer4"}
"""The stages of a ResNet with `stem: cifar`, which leaves out two halvings of the maps."""


@cache
def names() -> frozenset[str]:
    """Return the names of torchvision's classifiers."""
    from torchvision import models

    return frozenset(models.list_models(module=models))


@dataclass(frozen=True)
class Torchvision:
    """A model by torchvision's name; `weights` is the tag of its ImageNet weights, DEFAULT is the library's choice."""

    name: str
    weights: str = "DEFAULT"
    own_head: ClassVar[bool] = False
    smallest_side: ClassVar[int] = 1
    normalization: ClassVar[Literal["imagenet"]] = "imagenet"

    @property
    def takes(self) -> tuple[str, ...]:
        """The stem of a ResNet."""
        return ("stem",) if self.name.startswith(RESNETS) else ()

    def backbone(self, image_shape: ImageShape, options: Mapping[str, Any]) -> Backbone:
        """Return the model without its classifier; its images have three channels for every image_shape."""
        from torchvision import models

        arguments: dict[str, Any] = {}
        if self.name in INCEPTIONS:
            arguments = {"aux_logits": False, "init_weights": True, "transform_input": True}
        network = models.get_model(self.name, weights=None, **arguments)
        if self.name.startswith("squeezenet"):
            # Of its classifier (convolution, ReLU, average) only the average stays.
            network.classifier = nn.AdaptiveAvgPool2d(1)
            return Backbone(network, 512, classifier="classifier.1")
        cifar = options.get("stem") == "cifar"
        if cifar:
            replace_stem(network)
        classifier, features = remove_classifier(network)
        return Backbone(
            network,
            features,
            classifier=classifier,
            ignored=AUXILIARY if arguments else (),
            taps=CIFAR_TAPS if cifar else None,
        )

    def imagenet_name(self) -> str:
        """Return the file name of the ImageNet weights, which has the first digits of their SHA-256.

        Raises:
            UserError: if there are none.
        """
        return Path(self._tagged().url).name

    def imagenet(self) -> dict[str, Tensor]:
        """Return the ImageNet weights, downloaded to torch's hub folder.

        Raises:
            UserError: if there are none or they cannot be downloaded; it names the path at which a file can be placed.
        """
        from torchvision import models

        weights = self._tagged()
        placed = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        try:
            with download_timeout(TIMEOUT_S), torch.random.fork_rng(devices=[]):
                state: dict[str, Tensor] = models.get_model(self.name, weights=weights, progress=False).state_dict()
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: a file with another hash
            raise UserError(
                f"imagenet of {self.name} cannot be loaded ({reason(error)}); place {placed.name} at {placed}"
                " (TORCH_HOME moves the folder), or write weights: null for random ones"
            ) from None
        return state

    def _tagged(self) -> Any:
        from torchvision import models

        known = models.get_model_weights(self.name)
        if self.weights not in known.__members__:
            raise UserError(f"torchvision has no ImageNet weights for {self.name}; write weights: null")
        return known[self.weights]


def replace_stem(resnet: Any) -> None:
    """Give a ResNet the first layer for images of 32 px (He et al. 2016, arXiv:1512.03385, section 4.2).

    It is a 3x3 convolution of stride 1, with torchvision's random weights, and no max-pooling follows it.
    """
    resnet.conv1 = nn.Conv2d(3, resnet.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    resnet.maxpool = nn.Identity()


def remove_classifier(network: nn.Module) -> tuple[str, int]:
    """Replace the last linear layer and the dropout before it by Identity; return its name and its input features."""
    name, linear = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    parent_name, _, own_name = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    setattr(parent, own_name, nn.Identity())
    if isinstance(parent, nn.Sequential):
        before = int(own_name) - 1 if own_name.isdigit() else -1
        while before >= 0 and isinstance(parent[before], nn.Dropout):
            parent[before] = nn.Identity()
            before -= 1
    return name, linear.in_features


@contextmanager
def download_timeout(seconds: float) -> Iterator[None]:
    """Limit in the block how long urllib waits for a server: the libraries set no limit themselves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reason(error: BaseException) -> str:
    """Return the first cause of an error, in one line of at most 160 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
    return text[:160]
