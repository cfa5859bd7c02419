"""What pydantic says of plain data, in sentences for the person who wrote it."""

import json
import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdtrain.config.problems import Keys, Problem, choices, nearest, shown_value

M = TypeVar("M", bound=BaseModel)
Model = type[BaseModel]

RULES = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a mapping, {{key: value}}"),
    "finite_number": "must be a finite number",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
}


def validate(model: type[M], data: Any, noun: str) -> tuple[M | None, list[Problem]]:
    """Plain data as a model, or all that is wrong with it.

    Keys are those of `data`, without pydantic's union tags. A sentence calls the data as a whole `noun`.
    """
    try:
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        rules: dict[Keys, list[str]] = {}
        for details in error.errors(include_url=False):
            keys, text = _sentence(model, data, details, noun)
            rules.setdefault(keys, []).append(text)
    return None, [Problem(keys, _joined(texts)) for keys, texts in rules.items()]


def _sentence(model: Model, data: Any, details: ErrorDetails, noun: str) -> tuple[Keys, str]:
    """Where in `data`, and what, from one of pydantic's errors."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    keys, node = _in_data(data, details["loc"])
    if kind == "missing":
        return (*keys, details["loc"][-1]), "is missing"
    if kind == "extra_forbidden":
        return keys, _unknown_key(model, data, keys, noun)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        names = [name for option in _models_at(model, data, keys)[0] for name in _names(option)]
        if kind == "union_tag_not_found":
            return keys, f"needs a name; {choices(names)}"
        tag = str(context["tag"])
        return (*keys, "name"), f"unknown {keys[-1] if keys else 'name'} '{tag}'; {choices(names, tag)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        got = f"{shown_value(value)}{nearest(allowed, str(value))}"
        return keys, f"must be one of {', '.join(allowed)}, got {got}"
    if kind in ("value_error", "assertion_error"):
        return _relocated(keys, node, str(context.get("error", details["msg"])))
    if kind in RULES:
        rule = RULES[kind].format(**{key: str(limit).removesuffix(".0") for key, limit in context.items()})
    else:
        rule = details["msg"][:1].lower() + details["msg"][1:]
    return keys, f"{rule}, got {shown_value(value)}"


def _in_data(data: Any, loc: Keys) -> tuple[Keys, Any]:
    keys: Keys = ()
    for part in loc:
        known = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if known:  # else it names the member of a union, or a missing key
            keys, data = (*keys, part), data[part]
    return keys, data


def _unknown_key(model: Model, data: Any, keys: Keys, noun: str) -> str:
    options, node = _models_at(model, data, keys[:-1])
    owner, key = _meant(options, node), str(keys[-1])
    known = list(owner.model_fields) if owner else []
    name = node.get("name") if "name" in known else None
    hint = nearest(known, key) or f"; it has: {', '.join(known) or 'nothing'}"
    return f"{name or (keys[-2] if len(keys) > 1 else noun)} has no '{key}'{hint}"


def _models_at(model: Model, data: Any, keys: Keys) -> tuple[list[Model], Any]:
    """The models that can stand at a path, and what does stand there."""
    options = [model]
    for key in keys:
        owner = _meant(options, data)
        field = owner.model_fields.get(str(key)) if owner else None
        options, data = _models(field.annotation) if field else [], data[key]
    return options, data


def _models(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _meant(options: list[Model], node: Any) -> Model | None:
    """The model that a mapping is, by its `name` where there are several."""
    named = [option for option in options if isinstance(node, dict) and node.get("name") in _names(option)]
    return next(iter(named or options), None)


def _names(model: Model) -> list[str]:
    return (
        [str(name) for name in get_args(model.model_fields["name"].annotation)] if "name" in model.model_fields else []
    )


def _relocated(keys: Keys, node: Any, text: str) -> tuple[Keys, str]:
    """A sentence of a whole model that begins with a field of it (`lr_schedule.warmup_epochs must ...`)."""
    first, _, rest = text.partition(" ")
    below: Keys = ()
    for key in first.split("."):
        if not isinstance(node, dict) or key not in node:
            return keys, text
        below, node = (*below, key), node[key]
    return (*keys, *below), rest


def _joined(texts: list[str]) -> str:
    """What the members of a union want, as one sentence: `must be auto or a whole number, got 'all'`."""
    if len(texts) == 1 or not all(text.startswith("must be ") and ", got " in text for text in texts):
        return "; ".join(dict.fromkeys(texts))
    rules, got = [text.rpartition(", got ")[0] for text in texts], texts[0].rpartition(", got ")[2]
    wanted = " or ".join(dict.fromkeys(rule.removeprefix("must be ").removeprefix("one of ") for rule in rules))
    return f"must be {wanted}, got {got}"
