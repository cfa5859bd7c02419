"""Backbone: a library's network without its classifier; Source: a library that makes backbones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
        taps: {stage: module path in the encoder} if the options of the backbone move its stages, else None.
    """

    encoder: nn.Module
    features: int
    channels: int = 3
    classifier: str = ""
    ignored: tuple[str, ...] = ()
    head: Callable[[int, int], nn.Module] | None = None
    taps: dict[str, str] | None = None


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

    @property
    def smallest_side(self) -> int:
        """The fewest pixels of height and width that the network takes, as far as that is known without building it."""
        ...

    @property
    def takes(self) -> tuple[str, ...]:
        """The fields of a recipe's network that not every model has, e.g. the widths of hidden layers."""
        ...

    def backbone(self, image_shape: ImageShape, options: Mapping[str, Any]) -> Backbone:
        """Return the backbone for images (C, H, W), with weights drawn from torch's global generator.

        `options` has the values of the fields that the model takes; one that is absent has the model's own value.
        """
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
