"""What a recipe says of a network: which one, which weights, what is frozen, which head."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from kdtrain.base_config import Config
from kdtrain.models.registry import MODELS, known_model, model
from kdtrain.models.source import Normalization

Freeze = Literal["none", "encoder", "encoder_but_norm"]
Statistics = Literal["update", "keep"]
Head = Literal["linear", "hidden"]
ModelName = Annotated[str, AfterValidator(known_model), Field(json_schema_extra={"examples": list(MODELS)})]


class WeightsFile(Config):
    """Weights of a network of this kind, in a file (.safetensors, or .pth read with weights_only)."""

    file: str
    part: Literal["network", "encoder"] = "network"


def _no_default(schema: dict[str, Any]) -> None:
    """Left out is the model's own, so the schema promises no value."""
    schema.pop("default", None)


class Network(Config):
    """A network. What is left out is the model's own (`kdtrain.models.registry`); a dump has every value written."""

    model: ModelName
    weights: Literal["imagenet"] | WeightsFile | None = Field(
        None,
        description="imagenet, {file: PATH}, or null for random ones; left out: the model's own",
        json_schema_extra=_no_default,
    )
    freeze: Freeze = Field(
        "none", description="encoder: only the head trains; encoder_but_norm: and the encoder's normalisation layers"
    )
    batch_norm_statistics: Statistics = Field(
        "update",
        description="of the encoder in training; left out: keep where freeze is encoder",
        json_schema_extra=_no_default,
    )
    head: Head = Field("linear", description="hidden: Linear(1000), dropout, batch norm, ReLU, Linear (setup 1)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="left out: 0.5 for a hidden head, else 0", json_schema_extra=_no_default
    )
    normalization: Normalization = Field(
        "imagenet",
        description="of pixels in [0, 1]; half: mean and standard deviation 0.5; left out: the model's own",
        json_schema_extra=_no_default,
    )
    channels_last: bool = Field(
        True,
        description="memory layout of maps; changes speed and rounding; left out: the model's own, true but for BiT",
        json_schema_extra=_no_default,
    )
    compile: bool = Field(False, description="torch.compile of its training forward: faster after minutes of compiling")
    allow_random_frozen: bool = Field(False, description="lets an encoder with random weights be frozen")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, written: Any) -> Any:
        if not isinstance(written, dict) or not _is_known(written.get("model")):
            return written  # the field's own validator says what is wrong
        return resolved(written)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        for problem in (*own_head_problems(self), *frozen_problems(self)):
            raise ValueError(problem)
        return self


def resolved(written: dict[str, Any]) -> dict[str, Any]:
    """What is written, with the model's own values where nothing is: an explicit null is not nothing."""
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
    return 0.5 if head == "hidden" else 0.0


def own_head_problems(network: Network) -> list[str]:
    """LeNet5 is one whole: its head, its pixels and its weights are not exchanged."""
    entry = model(network.model)
    problems = []
    if entry.source.own_head:
        own = {"head": "linear", "dropout": 0.0, "normalization": entry.source.normalization}
        changed = [name for name, value in own.items() if getattr(network, name) != value]
        changed += ["weights imagenet"] if network.weights == "imagenet" else []
        problems += (
            [f"{network.model} has its own head and pixels: it takes no {', '.join(changed)}"] if changed else []
        )
    if network.model in MODELS and not entry.batch_norm and network.batch_norm_statistics == "keep":
        problems += [f"{network.model} has no batch normalisation: batch_norm_statistics keep does nothing"]
    if entry.source.own_head and network.freeze == "encoder_but_norm":
        problems += [f"{network.model} has no normalisation layers: freeze must be none or encoder"]
    return problems


def frozen_problems(network: Network) -> list[str]:
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
