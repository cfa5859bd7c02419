"""What a network is made of before it is a Classifier, and where its parts come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

ImageShape = tuple[int, int, int]
Normalization = Literal["imagenet", "half", "none"]


@dataclass(frozen=True)
class Parts:
    """A library's network without its final classifier.

    encoder: images [N, channels, H, W] -> pooled features [N, features]. classifier: what the library calls the final
    linear layer in its weights files ("fc"), "" where it has none. ignored: beginnings of names in those files that
    are no part of the network (auxiliary classifiers). head: (features, K) -> the network's own head, or None.
    """

    encoder: nn.Module
    features: int
    channels: int = 3
    classifier: str = ""
    ignored: tuple[str, ...] = ()
    head: Callable[[int, int], nn.Module] | None = None


class Source(Protocol):
    """Where a network comes from: torchvision, timm or our own code."""

    @property
    def own_head(self) -> bool: ...

    @property
    def normalization(self) -> Normalization: ...

    def parts(self, image_shape: ImageShape) -> Parts:
        """With fresh weights, drawn from torch's global random numbers."""
        ...

    def imagenet_name(self) -> str:
        """Names the ImageNet weights, for a trial's identity; UserError where there are none."""
        ...

    def imagenet(self) -> dict[str, Tensor]:
        """The ImageNet weights under the library's names, loaded by the library; UserError where that fails."""
        ...
