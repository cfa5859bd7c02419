"""Mistakes in a file, the parts of sentences that describe them, and pydantic's validation errors as such sentences."""

import difflib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdtrain.base_config import Config
from kdtrain.errors import shortened

KeyPath = tuple[str | int, ...]
"""The path of a value in plain data: ("recipe", "method", "choice", 0, "temperature")."""
M = TypeVar("M", bound=BaseModel)
Model = type[BaseModel]

MOST_SHOWN, MOST_OF_PATH, MOST_OF_CHOICES = 60, 200, 1000
"""Characters that a message shows of a value, of the path to a value, and of a list of choices."""

MAPPING_KINDS = ("dict_type", "model_type", "model_attributes_type")

RULES = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "must be a whole number"),
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(MAPPING_KINDS, "must be a mapping, {{key: value}}"),
    "finite_number": "must be a finite number",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "too_short": "must have a length >= {min_length}",
}


@dataclass(frozen=True)
class Problem:
    """One mistake: the path of the wrong value, and a sentence.

    `shown_path` is the path in the message, if it differs: the path in the recipe, without the choices on the way.
    """

    path: KeyPath
    text: str
    shown_path: KeyPath | None = None

    def under(self, parent: KeyPath) -> "Problem":
        """Return the same problem with paths that start at the parent's root."""
        shown = self.path if self.shown_path is None else self.shown_path
        return replace(self, path=parent + self.path, shown_path=parent + shown)


def dotted(path: Sequence[str | int]) -> str:
    """Return a path as the user writes it, for a message: `recipe.method.temperature`."""
    return shortened(".".join(shortened(str(key)) for key in path[:MOST_OF_PATH]), MOST_OF_PATH)


OWN_PLACE = re.compile(r"recipe\.([a-z_]+(?:\.[a-z0-9_]+)*): (.*)", re.DOTALL)


def placed_in_recipe(text: str) -> Problem | None:
    """Return a sentence that begins with its place in the recipe, `recipe.data.part: ...`, as a problem; else None."""
    found = OWN_PLACE.fullmatch(text)
    if found is None:
        return None
    return Problem(tuple(int(key) if key.isdecimal() else key for key in found[1].split(".")), found[2])


def choices_hint(known: Collection[str], wrong: str = "") -> str:
    """Return the end of a sentence: `choices: none, kd; nearest: kd`."""
    return f"choices: {listed(known)}{nearest_hint(known, wrong)}"


def listed(choices: Iterable[str]) -> str:
    """Return choices for a message: `none, kd`."""
    return shortened(", ".join(choices), MOST_OF_CHOICES)


def nearest_hint(known: Collection[str], wrong: str) -> str:
    """Return the end of a sentence, `; nearest: kd`, or an empty text if no known name is similar."""
    near = difflib.get_close_matches(wrong, known, n=1) if len(wrong) <= MOST_OF_PATH else []
    return f"; nearest: {near[0]}" if near else ""


def format_value(value: Any) -> str:
    """Return a value as it would be written in YAML, cut to 60 characters.

    The labels of lists depend on that number.
    """
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, dict):
        first = itertools.islice(value.items(), MOST_SHOWN)
        text = "{" + ", ".join(f"{key}: {format_unquoted(item)}" for key, item in first) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(format_unquoted(item) for item in value[:MOST_SHOWN]) + "]"
    else:
        text = repr(value)
    return shortened(text, MOST_SHOWN)


def format_unquoted(value: Any) -> str:
    """Return a value as `format_value` does, but text without quotes and uncut."""
    return value if isinstance(value, str) else format_value(value)


def validate(model: type[M], data: Any, noun: str) -> tuple[M | None, list[Problem]]:
    """Return plain data as a model or None, and its problems, which call the whole data `noun`, such as "a recipe"."""
    try:
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        texts_at: dict[KeyPath, list[str]] = {}
        for details in error.errors(include_url=False):
            path, text = _sentence(model, data, details, noun)
            texts_at.setdefault(path, []).append(text)
    return None, [Problem(path, _join(texts)) for path, texts in texts_at.items()]


def _sentence(model: Model, data: Any, details: ErrorDetails, noun: str) -> tuple[KeyPath, str]:
    """Return the path in `data` and the sentence of one of pydantic's errors."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    path, node = _path_in_data(data, details["loc"])
    if kind == "missing":
        return (*path, details["loc"][-1]), "is missing"
    if kind == "extra_forbidden":
        return path, _unknown_key(model, data, path, noun)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        names = [name for option in _models_at(model, data, path)[0] for name in _names(option)]
        if kind == "union_tag_not_found":
            return path, f"needs a name; {choices_hint(names)}"
        tag = str(context["tag"])
        part = path[-1] if path else "name"
        return (*path, "name"), f"unknown {part} {format_value(tag)}; {choices_hint(names, tag)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        got = f"{format_value(value)}{nearest_hint(allowed, str(value))}"
        return path, f"must be one of {', '.join(allowed)}, got {got}"
    if kind in ("value_error", "assertion_error"):
        return _move_to_field(path, node, str(context.get("error", details["msg"])))
    if kind in RULES:
        rule = RULES[kind].format(**{key: str(limit).removesuffix(".0") for key, limit in context.items()})
    else:
        rule = details["msg"][:1].lower() + details["msg"][1:]
    return path, f"{rule}, got {format_value(value)}{_mapping_hint(model, data, path, kind, value)}"


def _mapping_hint(model: Model, data: Any, path: KeyPath, kind: str, value: Any) -> str:
    """Return the end of a sentence about a value that stands where a mapping must be: the mapping, or its keys."""
    if kind not in MAPPING_KINDS or isinstance(value, dict | list):
        return ""
    options = _models_at(model, data, path)[0]
    if value in (names := [name for option in options for name in _names(option)]):
        return f"; write {{name: {value}}}"
    if names:
        return f"; {choices_hint(names)}"
    keys = list(options[0].model_fields) if options else []
    if isinstance(value, str) and "model" in keys:
        return f"; write {{model: {shortened(value)}}}"
    return f"; it has: {', '.join(keys)}" if keys else ""


def _path_in_data(data: Any, loc: KeyPath) -> tuple[KeyPath, Any]:
    path: KeyPath = ()
    for part in loc:
        known = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if known:  # otherwise the part is the tag of a union, or a missing key
            path, data = (*path, part), data[part]
    return path, data


def _unknown_key(model: Model, data: Any, path: KeyPath, noun: str) -> str:
    options, node = _models_at(model, data, path[:-1])
    key = str(path[-1])
    owner = _select_model([option for option in options if key not in option.model_fields], node)
    if owner is not None and issubclass(owner, Config):
        if key in owner.renamed:
            return f"is now {dotted((*path[:-1], owner.renamed[key]))}"
        if key in owner.moved:
            return f"is now {owner.moved[key]}"
    known = list(owner.model_fields) if owner else []
    name = node.get("name") if "name" in known else None
    keys = [part for part in path[:-1] if isinstance(part, str)]
    hint = nearest_hint(known, key) or f"; it has: {', '.join(known) or 'nothing'}"
    owner_name = shortened(str(name or (keys[-1] if keys else noun)))
    return f"{owner_name} has no {format_value(key)}{hint}"


def _models_at(model: Model, data: Any, path: KeyPath) -> tuple[list[Model], Any]:
    """Return the models that are allowed at a path, and the data there; those of a list are those of its items."""
    options = [model]
    for key in path:
        if isinstance(key, str):
            owner = _select_model(options, data)
            field = owner.model_fields.get(key) if owner else None
            options = _models(field.annotation) if field else []
        data = data[key]
    return options, data


def _models(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _select_model(options: list[Model], node: Any) -> Model | None:
    """Return the model with the mapping's `name`; if no model has it, the first one that has most of the keys."""
    keys = node.keys() if isinstance(node, dict) else set()
    named = [option for option in options if isinstance(node, dict) and node.get("name") in _names(option)]
    return max(named or options, key=lambda option: len(keys & option.model_fields.keys()), default=None)


def _names(model: Model) -> list[str]:
    field = model.model_fields.get("name")
    return [str(name) for name in [*get_args(field.annotation), *(field.examples or ())]] if field else []


def _move_to_field(path: KeyPath, node: Any, text: str) -> tuple[KeyPath, str]:
    """Move a model's problem to a field if its sentence begins with one (`lr_schedule.warmup_epochs must ...`)."""
    first, _, rest = text.partition(" ")
    below: KeyPath = ()
    for key in first.split("."):
        part = int(key) if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else key
        if isinstance(part, str) and (not isinstance(node, dict) or part not in node):
            return path, text
        below, node = (*below, part), node[part]
    return (*path, *below), rest


def _join(texts: list[str]) -> str:
    """Join the rules of a union's members to one sentence: `must be auto or a whole number, got 'all'`."""
    if len(texts) == 1 or not all(text.startswith("must be ") and ", got " in text for text in texts):
        return "; ".join(dict.fromkeys(texts))
    rules, got = [text.rpartition(", got ")[0] for text in texts], texts[0].rpartition(", got ")[2]
    allowed = " or ".join(dict.fromkeys(rule.removeprefix("must be ").removeprefix("one of ") for rule in rules))
    return f"must be {allowed}, got {got}"
