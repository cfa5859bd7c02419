"""Backbone: a library's network without its classifier; Source: a library that makes backbones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

ImageShape = tuple[int, int, int]
Normalization = Literal["imagenet", "half", "none"]


@dataclass(frozen=True)
class Backbone:
    """A network without its final classifier.

    Attributes:
        encoder: images [N, channels, H, W] -> pooled features [N, features].
        features: C of the encoder's output.
        channels: of the encoder's input.
        classifier: name of the final linear layer in the library's weights files ("fc"), "" if there is none.
        ignored: prefixes of names in those files that are no part of the network (auxiliary classifiers).
        head: (features, K) -> the network's own head, or None if any head can follow.
    """

    encoder: nn.Module
    features: int
    channels: int = 3
    classifier: str = ""
    ignored: tuple[str, ...] = ()
    head: Callable[[int, int], nn.Module] | None = None


class Source(Protocol):
    """A model of torchvision, of timm, or of this package."""

    @property
    def own_head(self) -> bool:
        """True if the head is part of the model and cannot be exchanged."""
        ...

    @property
    def normalization(self) -> Normalization:
        """Normalization of pixels that the model's weights expect."""
        ...

    def backbone(self, image_shape: ImageShape) -> Backbone:
        """Return the backbone for images (C, H, W), with weights drawn from torch's global generator."""
        ...

    def imagenet_name(self) -> str:
        """Return a name of the ImageNet weights, for the identity of a trial.

        Raises:
            UserError: if there are none.
        """
        ...

    def imagenet(self) -> dict[str, Tensor]:
        """Return the ImageNet weights under the library's names, loaded by the library.

        Raises:
            UserError: if there are none or they cannot be loaded.
        """
        ...
