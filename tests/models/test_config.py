"""The recipe's Network: what is left out, what goes together, what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from kdtrain.models.config import SPECIAL, Network
from kdtrain.models.registry import MODELS


def network(**fields: Any) -> Network:
    return Network.model_validate(fields)


NEEDED = {"mlp": {"hidden": [30, 20], "input_dropout": 0.2, "max_norm": 3.5}}
"""What must be written for a model, and more."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weights": None},
        {"weights": {"file": "a.pth"}, "freeze": "encoder"},
        {"weights": None, "freeze": "encoder", "allow_random_frozen": True},
    ],
)
def test_a_dump_has_every_value_and_reads_back_as_the_same_config(model: str, fields: dict[str, Any]) -> None:
    config = network(model=model, **fields, **NEEDED.get(model, {}))
    dumped = config.model_dump(mode="json")
    used = {name for name, value in SPECIAL.items() if getattr(config, name) != value}
    assert dumped.keys() == Network.model_fields.keys() - SPECIAL.keys() | used
    assert Network.model_validate(dumped) == config
    assert Network.model_validate_json(config.model_dump_json()) == config


def test_what_is_left_out_is_the_models_own() -> None:
    resnet = network(model="resnet18")
    assert (resnet.weights, resnet.normalization, resnet.dropout) == ("imagenet", "imagenet", 0.0)
    assert network(model="resnet18", weights=None).weights is None
    bit = network(model="bit_resnet101x3")
    assert (bit.weights, bit.normalization) == ("imagenet", "half")
    assert network(model="resnet50v2").weights is None
    assert network(model="lenet5_student").weights is None
    assert network(model="lenet5_student").normalization == "none"
    assert network(model="tf_efficientnet_lite0", weights="imagenet").normalization == "half"


def test_a_frozen_encoder_keeps_its_statistics_unless_written() -> None:
    def statistics(**fields: Any) -> str:
        return network(model="resnet18", **fields).batch_norm_statistics

    assert statistics(freeze="encoder") == "keep"
    assert statistics(freeze="encoder", batch_norm_statistics="update") == "update"
    assert statistics(freeze="encoder_but_norm") == "update"
    assert statistics() == "update"
    assert statistics(batch_norm_statistics="keep") == "keep"


def test_a_hidden_heads_dropout_is_half() -> None:
    assert network(model="resnet18", head="hidden").dropout == 0.5
    assert network(model="resnet18", head="hidden", dropout=0.1).dropout == 0.1


RANDOM = "would freeze random weights; give weights, or write allow_random_frozen: true"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "resnet81"}, "unknown model 'resnet81'; choices: lenet5_teacher, .*; nearest: resnet18"),
        ({"model": "resnet34"}, "weights must be written for resnet34: imagenet, {file: PATH} or null"),
        ({"model": "resnet50v2", "freeze": "encoder"}, f"freeze encoder with weights null {RANDOM}"),
        ({"model": "resnet50v2", "freeze": "encoder_but_norm"}, f"freeze encoder_but_norm with weights null {RANDOM}"),
        ({"model": "resnet18", "allow_random_frozen": True}, "does nothing: no random weights are frozen"),
        ({"model": "resnet50v2", "allow_random_frozen": True}, "does nothing: no random weights are frozen"),
        (
            {"model": "resnet18", "freeze": "encoder", "allow_random_frozen": True},
            "does nothing: no random weights are frozen",
        ),
        ({"model": "lenet5_student", "head": "hidden"}, "own head and pixels: it takes no head, dropout"),
        ({"model": "lenet5_student", "dropout": 0.1}, "own head and pixels: it takes no dropout"),
        ({"model": "lenet5_student", "weights": "imagenet"}, "it takes no weights imagenet"),
        ({"model": "lenet5_student", "normalization": "half"}, "it takes no normalization"),
        ({"model": "lenet5_student", "batch_norm_statistics": "keep"}, "has no batch normalization"),
        ({"model": "mlp"}, "hidden must be written for mlp: the units of each hidden layer"),
        ({"model": "mlp", "hidden": []}, "at least 1 item"),
        ({"model": "mlp", "hidden": [30, 0]}, r"hidden\.1\n.*greater than or equal to 1"),
        ({"model": "mlp", "hidden": [30], "input_dropout": 1.0}, "input_dropout\n.*less than 1"),
        ({"model": "mlp", "hidden": [30], "max_norm": 0.0}, "max_norm\n.*greater than 0"),
        ({"model": "mlp", "hidden": [30], "head": "hidden", "dropout": 0.0}, "own head and pixels: it takes no head"),
        ({"model": "mlp", "hidden": [30], "normalization": "half"}, "own head and pixels: it takes no normalization"),
        ({"model": "mlp", "hidden": [30], "weights": "imagenet"}, "it takes no weights imagenet"),
        ({"model": "mlp", "hidden": [30], "stem": "cifar"}, "mlp takes no stem: it is for the ResNets of torchvision"),
        ({"model": "lenet5_student", "max_norm": 3.5}, "lenet5_student takes no max_norm: .* no max-norm of a convol"),
        ({"model": "resnet18", "hidden": [30]}, "resnet18 takes no hidden: it is for mlp"),
        ({"model": "resnet18", "input_dropout": 0.2}, "resnet18 takes no input_dropout: it is for mlp"),
        ({"model": "mobilenetv2", "stem": "cifar", "weights": None}, "mobilenetv2 takes no stem"),
        ({"model": "resnet50v2", "stem": "cifar"}, "resnet50v2 takes no stem"),
        ({"model": "resnet18", "stem": "cifar"}, "stem cifar has no ImageNet weights; write weights: null or {file"),
        ({"model": "bit_resnet50x1", "batch_norm_statistics": "keep"}, "has no batch normalization"),
        (
            {"model": "lenet5_student", "freeze": "encoder_but_norm", "weights": {"file": "a.pth"}},
            "has no normalization layers: freeze must be none or encoder",
        ),
        ({"model": "vit_base_patch16_clip_224", "weights": None}, "normalization must be written for vit_base_patch16"),
        ({"model": "resnet18", "batch_norm_statistics": None}, "Input should be 'update' or 'keep'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as caught:
        network(**fields)
    assert caught.value.error_count() == 1


def test_the_schema_offers_the_tables_names_and_promises_no_value_that_is_the_models_own() -> None:
    properties = Network.model_json_schema()["properties"]
    assert properties["model"] == {"examples": list(MODELS), "title": "Model", "type": "string"}
    own = ("weights", "batch_norm_statistics", "dropout", "normalization")
    assert not any("default" in properties[name] for name in own)
