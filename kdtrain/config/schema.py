"""The JSON schema of a sweep file, for editors: `kdtrain schema > sweeps/schema.json`."""

import json
from typing import Any

from kdtrain.config.parameter import INT_KINDS, RANGE_KINDS
from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import SweepFile

DESCRIPTIONS = {
    "uniform": "Any number from low to high.",
    "loguniform": "Any number from low to high, uniform in its logarithm.",
    "int": "Any whole number from low to high, both included.",
    "logint": "Any whole number from low to high, both included, uniform in its logarithm.",
    "choice": "One of these options. An option may contain search spaces.",
}


def sweep_schema() -> dict[str, Any]:
    """Return the schema of a sweep file: below `recipe` a number may be a range, and any value or subtree a choice."""
    schema = SweepFile.model_json_schema()
    recipe = Recipe.model_json_schema()
    shared = recipe.pop("$defs")
    for key in ("objective", "seed"):
        del recipe["properties"][key]
    recipe["required"] = [*recipe["required"], "teacher"]
    of_data = shared["Teacher"]["properties"]["data"]
    data_sets = [option["$ref"].rpartition("/")[2] for option in recipe["properties"]["data"]["oneOf"]]
    teachers = [{"$ref": f"#/$defs/Teacher{name}"} for name in data_sets]
    shared["Teacher"]["properties"]["data"] = {**of_data, "anyOf": [*teachers, {"type": "null"}]}
    defs: dict[str, Any] = {**schema.pop("$defs"), **{kind: _range(kind) for kind in RANGE_KINDS}}
    for name, model in {**shared, "Recipe": recipe}.items():
        defs[name] = _with_spaces(name, model, defs)
    defs |= {f"Teacher{name}": _left_out(defs[name]) for name in data_sets}
    schema["properties"]["recipe"] = {"$ref": "#/$defs/Recipe"}
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **schema, "title": "kdtrain sweep", "$defs": dict(sorted(defs.items()))}


def schema_text() -> str:
    """Return the text of sweeps/schema.json."""
    return json.dumps(sweep_schema(), indent=2) + "\n"


def _with_spaces(name: str, model: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Return a model of the recipe whose values may be spaces; each has its own definition, since choices nest."""
    properties = {}
    for key, value in model.get("properties", {}).items():
        if "const" in value:  # a name, by which an editor finds the model
            properties[key] = value
            continue
        place = f"{name}.{key}"
        defs[place] = {"anyOf": [value, *({"$ref": f"#/$defs/{kind}"} for kind in _ranges(value)), _choice(place)]}
        about = {word: value[word] for word in ("description", "default") if word in value}
        properties[key] = {"$ref": f"#/$defs/{place}", **about}
    return {**model, "properties": properties}


def _left_out(model: dict[str, Any]) -> dict[str, Any]:
    """Return a data set of which a teacher's data may leave out every key, and then has the recipe's value."""
    properties = {
        key: {word: part for word, part in value.items() if word != "default"}
        for key, value in model["properties"].items()
    }
    return {word: part for word, part in model.items() if word != "required"} | {"properties": properties}


def _ranges(value: dict[str, Any]) -> tuple[str, ...]:
    kinds = {part.get("type") for part in [value, *value.get("anyOf", ())]}
    return RANGE_KINDS if "number" in kinds else INT_KINDS if "integer" in kinds else ()


def _range(kind: str) -> dict[str, Any]:
    number: dict[str, Any] = {"type": "integer" if kind in INT_KINDS else "number"}
    number |= {"loguniform": {"exclusiveMinimum": 0}, "logint": {"minimum": 1}}.get(kind, {})
    ends = {"type": "array", "prefixItems": [number, number], "items": number, "minItems": 2, "maxItems": 2}
    return _space(kind, ends)


def _choice(place: str) -> dict[str, Any]:
    options = {"type": "array", "items": {"$ref": f"#/$defs/{place}"}, "minItems": 1, "uniqueItems": True}
    return _space("choice", options)


def _space(word: str, written: dict[str, Any]) -> dict[str, Any]:
    properties = {"properties": {word: written}, "required": [word], "additionalProperties": False}
    return {"type": "object", "description": DESCRIPTIONS[word], **properties}


if __name__ == "__main__":
    print(schema_text(), end="")
