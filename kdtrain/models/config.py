"""The config of a network in a recipe: model, weights, frozen parameters, head."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdtrain.base_config import Config, Positive, tuple_from_list
from kdtrain.models.registry import MODELS, known_model, model
from kdtrain.models.source import Normalization

Freeze = Literal["none", "encoder", "encoder_but_norm"]
Statistics = Literal["update", "keep"]
Head = Literal["linear", "hidden"]
Stem = Literal["cifar"]
Probability = Annotated[float, Field(ge=0, lt=1)]
MOST_UNITS = 100_000
MOST_WEIGHTS = 10**9
"""Bounds of an mlp. Training takes up to 16 bytes a weight: the weight, its gradient and two moments of Adam."""
Units = Annotated[int, Field(ge=1, le=MOST_UNITS)]
HiddenLayers = Annotated[tuple[Units, ...], BeforeValidator(tuple_from_list), Field(min_length=1)]
ModelName = Annotated[str, AfterValidator(known_model), Field(json_schema_extra={"examples": list(MODELS)})]


WeightsKey = Annotated[str, Field(min_length=1)]
WEIGHTS_KEY = (
    "Which weights of a file with several, as a dotted path: state_dict_ema. Left out: the first that fit the network,"
    " averaged ones (ema, swa) last; the choice is printed."
)


class WeightsFile(Config):
    """Initial weights of this model from a file; the training goes on from them."""

    file: str = Field(
        description="A .safetensors file or one of torch.save, from which no code is run. A relative path begins at the"
        " working folder."
    )
    part: Literal["network", "encoder"] = Field("network", description="encoder: the head begins with random weights")
    weights_key: WeightsKey | None = Field(None, description=WEIGHTS_KEY)


SPECIAL: dict[str, Any] = {"hidden": None, "input_dropout": 0.0, "max_norm": None, "stem": None}
"""The fields that only some models take, with the value of all others."""


def _no_default(schema: dict[str, Any]) -> None:
    """Remove the default from the JSON schema: it depends on the model."""
    schema.pop("default", None)


class Network(Config):
    """A network. A value that is left out is the model's own (see `registry`); a dump has every value written."""

    newer: ClassVar = SPECIAL

    model: ModelName
    hidden: HiddenLayers | None = Field(None, description="mlp: units of each hidden layer, e.g. [800, 800]")
    stem: Stem | None = Field(
        None,
        description="cifar, for ResNets of torchvision and images of about 32 px: they begin with a 3x3 convolution of"
        " stride 1 without max-pooling; null: 7x7 of stride 2 and max-pooling",
    )
    weights: Literal["imagenet"] | WeightsFile | None = Field(
        None,
        description="Initial weights, from which the training goes on: imagenet, {file: PATH}, or null for random ones;"
        " left out: the model's own",
        json_schema_extra=_no_default,
    )
    freeze: Freeze = Field(
        "none",
        description="encoder: only the head trains; encoder_but_norm: the encoder's normalization layers train too",
    )
    batch_norm_statistics: Statistics = Field(
        "update",
        description="of the encoder in training; left out: keep if freeze is encoder, else update",
        json_schema_extra=_no_default,
    )
    head: Head = Field("linear", description="hidden: Linear(1000), dropout, batch norm, ReLU, Linear (setup 1)")
    dropout: Probability = Field(
        0.0,
        description="of the head, in an mlp of every hidden layer; left out: 0.5 for a hidden head, else 0",
        json_schema_extra=_no_default,
    )
    input_dropout: Probability = Field(0.0, description="mlp: of the pixels")
    max_norm: Positive | None = Field(
        None,
        description="mlp: after each update the incoming weights of a unit whose L2 norm is above this are scaled down"
        " to it",
    )
    normalization: Normalization = Field(
        "imagenet",
        description="of pixels in [0, 1]; half: mean and standard deviation 0.5; left out: the model's own",
        json_schema_extra=_no_default,
    )
    channels_last: bool = Field(
        True,
        description="memory layout of maps; changes speed and rounding; left out: the model's own (false for BiT)",
        json_schema_extra=_no_default,
    )
    compile: bool = Field(
        False, description="torch.compile of the training forward: it takes minutes and makes steps faster"
    )
    allow_random_frozen: bool = Field(False, description="allows freezing an encoder with random weights")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, written: Any) -> Any:
        if not isinstance(written, dict) or not _is_known(written.get("model")):
            return written  # the validator of `model` reports it
        return resolved(written)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        for problem in (*own_head_problems(self), *special_problems(self), *frozen_problems(self)):
            raise ValueError(problem)
        return self


def resolved(written: dict[str, Any]) -> dict[str, Any]:
    """Return the written config of a known model with the model's own values for what is left out; null is written."""
    entry = model(written["model"])
    if "weights" not in written and entry.default_weights == "written":
        raise ValueError(f"weights must be written for {written['model']}: imagenet, {{file: PATH}} or null")
    left_out: dict[str, Any] = {"weights": entry.default_weights}
    if "normalization" not in written:
        left_out["normalization"] = entry.source.normalization
    if written.get("freeze") == "encoder" and entry.batch_norm:
        left_out["batch_norm_statistics"] = "keep"
    left_out["channels_last"] = entry.channels_last
    left_out["dropout"] = default_dropout(written.get("head", "linear"))
    return {**left_out, **written}


def default_dropout(head: str) -> float:
    """Return the dropout probability of a head if the recipe has none."""
    return 0.5 if head == "hidden" else 0.0


def own_head_problems(network: Network) -> list[str]:
    """Return what is wrong with fields that the model does not have, e.g. another head for LeNet5."""
    entry = model(network.model)
    problems = []
    if entry.source.own_head:
        own = {"head": "linear", "dropout": 0.0, "normalization": entry.source.normalization}
        changed = [n for n, value in own.items() if getattr(network, n) != value and n not in entry.source.takes]
        changed += ["weights imagenet"] if network.weights == "imagenet" else []
        problems += (
            [f"{network.model} has its own head and pixels: it takes no {', '.join(changed)}"] if changed else []
        )
    if network.model in MODELS and not entry.batch_norm and network.batch_norm_statistics == "keep":
        problems += [f"{network.model} has no batch normalization: batch_norm_statistics keep does nothing"]
    if entry.source.own_head and network.freeze == "encoder_but_norm":
        problems += [f"{network.model} has no normalization layers: freeze must be none or encoder"]
    return problems


OWNERS = {
    "hidden": "it is for mlp",
    "input_dropout": "it is for mlp",
    "max_norm": "it limits the weights of linear layers and is no max-norm of a convolution; it is for mlp",
    "stem": "it is for the ResNets of torchvision",
}


def special_problems(network: Network) -> list[str]:
    """Return what is wrong with fields that only some models take, e.g. hidden layers of a ResNet."""
    takes = model(network.model).source.takes
    foreign = [name for name, value in SPECIAL.items() if getattr(network, name) != value and name not in takes]
    problems = [f"{network.model} takes no {name}: {OWNERS[name]}" for name in foreign]
    if "hidden" in takes and network.hidden is None:
        problems.append(f"hidden must be written for {network.model}: the units of each hidden layer, e.g. [800, 800]")
    if network.hidden is not None and (weights := sum(a * b for a, b in pairwise(network.hidden))) > MOST_WEIGHTS:
        problems.append(f"hidden must have at most {MOST_WEIGHTS:,} weights between its layers, got {weights:,}")
    if network.stem is not None and network.weights == "imagenet":
        problems.append(f"stem {network.stem} has no ImageNet weights; write weights: null or {{file: PATH}}")
    return problems


def frozen_problems(network: Network) -> list[str]:
    """Return what is wrong with freezing random weights."""
    random_frozen = network.weights is None and network.freeze != "none"
    if random_frozen and not network.allow_random_frozen:
        return [
            f"freeze {network.freeze} with weights null would freeze random weights;"
            " give weights, or write allow_random_frozen: true"
        ]
    if network.allow_random_frozen and not random_frozen:
        return ["allow_random_frozen does nothing: no random weights are frozen"]
    return []


def _is_known(name: Any) -> bool:
    try:
        return isinstance(name, str) and known_model(name) == name
    except ValueError:
        return False
