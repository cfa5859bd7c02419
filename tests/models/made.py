"""Networks for these tests, with random weights unless the fields name others."""

from typing import Any

import torch

from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network
from kdtrain.models.source import ImageShape

RGB = (3, 64, 64)


def config(model: str, **fields: Any) -> Network:
    return Network.model_validate({"model": model, "weights": None, **fields})


def made(model: str, shape: ImageShape = RGB, classes: int = 5, seed: int = 0, **fields: Any) -> Classifier:
    """Build a network; random weights may be frozen."""
    if fields.get("freeze", "none") != "none" and fields.get("weights") is None:
        fields["allow_random_frozen"] = True
    return build(config(model, **fields), shape, classes, seed)


def shapes_only(model: str, shape: ImageShape = (3, 224, 224), classes: int = 5, **fields: Any) -> Classifier:
    """Build a network on the meta device, without memory and time."""
    with torch.device("meta"):
        return build(config(model, **fields), shape, classes, 0, pretrained=False)


def images(shape: ImageShape = RGB, count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
