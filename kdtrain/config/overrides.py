"""Overrides of the command line (--set) and the API: `recipe.epochs=3` for a sweep, `epochs=3` for a plain recipe."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from kdtrain.config.located import Located, parse_value
from kdtrain.config.parameter import space_kind
from kdtrain.config.problems import KeyPath, Problem, dotted, format_value
from kdtrain.errors import UserError


def apply_overrides(
    located: Located, overrides: Sequence[str], parts: Collection[str], example: str
) -> tuple[Located, list[Problem]]:
    """Return the data with every valid override applied, and the problems of the others.

    Args:
        located: A sweep or a plain recipe.
        overrides: Texts `path=value`; the value is YAML.
        parts: The keys of the top level that exist.
        example: A valid override, for error messages.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides: must be a list, such as ['{example}'], got {format_value(overrides)}")
    problems = []
    for override in overrides:
        key_text, equals, text = override.partition("=")
        place = f"--set {key_text}"
        try:
            if not equals or not all(key_text.split(".")):
                raise ValueError(f"must be written as {example}")
            path = _path(located.data, key_text, parts)
            located = located.with_value(path, parse_value(text, place), place)
        except ValueError as error:
            located = replace(located, places={**located.places, (place,): place})
            problems.append(Problem((place,), str(error), ()))
    return located, problems


def _path(data: dict[str, Any], key_text: str, parts: Collection[str]) -> KeyPath:
    path = tuple(int(key) if key.isdecimal() else key for key in key_text.split("."))
    if path[0] not in parts:
        owners = [part for part, value in data.items() if isinstance(value, dict) and path[0] in value]
        hint = f"; did you mean {owners[0]}.{key_text}?" if owners else ""
        raise ValueError(f"must begin with {', '.join(f'{part}.' for part in parts)}{hint}")
    node: Any = data
    for i, key in enumerate(path):
        kind = space_kind(node) if i > 1 else None
        if kind and key != kind:
            here = dotted(path[:i])
            hint = f"; to change one option write {here}.choice.0.{dotted(path[i:])}" if kind == "choice" else ""
            raise ValueError(f"{here} is a search space, {format_value(node)}: replace it as a whole{hint}")
        if isinstance(node, dict):
            node = node.get(str(key))
        else:
            node = node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None
    return path
