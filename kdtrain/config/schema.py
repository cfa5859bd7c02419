"""The JSON schema of a sweep file, for editors: python -m kdtrain.config.schema > sweeps/schema.json"""

import json
from typing import Any

from kdtrain.config.parameter import RANGES, WHOLE
from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import SweepFile

MEANINGS = {
    "uniform": "any number from low to high",
    "loguniform": "any number from low to high, evenly by its logarithm",
    "int": "any whole number from low to high, both included",
    "logint": "any whole number from low to high, evenly by its logarithm",
    "choice": "one of these; an option may hold search spaces itself",
}


def sweep_schema() -> dict[str, Any]:
    """The whole file; below `recipe` any number may be a range, and any value or subtree a choice."""
    schema = SweepFile.model_json_schema()
    recipe = Recipe.model_json_schema()
    shared = recipe.pop("$defs")
    recipe["properties"] = {
        key: value for key, value in recipe["properties"].items() if key not in ("objective", "seed")
    }
    recipe["required"] = [*recipe["required"], "teacher"]
    defs: dict[str, Any] = {**schema.pop("$defs"), **{kind: _range(kind) for kind in RANGES}}
    for name, model in {**shared, "Recipe": recipe}.items():
        defs[name] = _with_spaces(name, model, defs)
    schema["properties"]["recipe"] = {"$ref": "#/$defs/Recipe"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "kdtrain sweep",
        "$defs": dict(sorted(defs.items())),
    }


def schema_text() -> str:
    return json.dumps(sweep_schema(), indent=2) + "\n"


def _with_spaces(name: str, model: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """A model of the recipe whose values may be spaces; each value gets a definition, since choices nest."""
    properties = {}
    for key, value in model.get("properties", {}).items():
        if "const" in value:  # the name by which an editor knows which model this is
            properties[key] = value
            continue
        place = f"{name}.{key}"
        defs[place] = {"anyOf": [value, *({"$ref": f"#/$defs/{kind}"} for kind in _ranges(value)), _choice(place)]}
        about = {word: value[word] for word in ("description", "default") if word in value}
        properties[key] = {"$ref": f"#/$defs/{place}", **about}
    return {**model, "properties": properties}


def _ranges(value: dict[str, Any]) -> tuple[str, ...]:
    kinds = {part.get("type") for part in [value, *value.get("anyOf", ())]}
    return RANGES if "number" in kinds else WHOLE if "integer" in kinds else ()


def _range(kind: str) -> dict[str, Any]:
    number: dict[str, Any] = {"type": "integer" if kind in WHOLE else "number"}
    if kind == "loguniform":
        number["exclusiveMinimum"] = 0
    if kind == "logint":
        number["minimum"] = 1
    return _space(
        kind,
        {"type": "array", "prefixItems": [number, number], "items": number, "minItems": 2, "maxItems": 2},
    )


def _choice(place: str) -> dict[str, Any]:
    options = {"type": "array", "items": {"$ref": f"#/$defs/{place}"}, "minItems": 1, "uniqueItems": True}
    return _space("choice", options)


def _space(word: str, written: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": MEANINGS[word],
        "properties": {word: written},
        "required": [word],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(schema_text(), end="")
