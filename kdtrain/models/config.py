"""What a recipe says of a network: which one, which weights, what is frozen, which head."""

from typing import Annotated, Any, Literal

from pydantic import Field

from kdtrain.fields import Config

Freeze = Literal["none", "encoder", "encoder_but_norm"]


class WeightsFile(Config):
    """Weights of a network of this kind, in a file (.safetensors, or .pth read with weights_only)."""

    file: str
    part: Literal["network", "encoder"] = "network"


class Network(Config):
    """A network. What is left out is the model's own: see `kdtrain.models.MODELS`."""

    model: str
    weights: Literal["imagenet"] | WeightsFile | None = None
    freeze: Freeze = "none"
    batch_norm_statistics: Literal["update", "keep"] | None = None
    head: Literal["linear", "hidden"] = "linear"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    normalization: Literal["imagenet", "half", "none"] | None = None
    allow_random_frozen: bool = False


def defaults(written: Any) -> Any:
    return written
