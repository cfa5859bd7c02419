"""The command line's --set: `recipe.epochs=3` written over a sweep, `epochs=3` over a plain recipe."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from kdtrain.config.located import Located, parse_value
from kdtrain.config.parameter import space_word
from kdtrain.config.problems import Keys, Problem, dotted, shown_value


def overridden(
    located: Located, overrides: Sequence[str], parts: Collection[str], example: str
) -> tuple[Located, list[Problem]]:
    """The file with every override that can be set, and what is wrong with the others. `parts` is what stands on top
    of such a file, `example` an override of one."""
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        place = f"--set {path}"
        try:
            if not equals or not all(path.split(".")):
                raise ValueError(f"must be written as {example}")
            keys = _keys(located.data, path, parts)
            located = located.with_value(keys, parse_value(text, place), place)
        except ValueError as error:
            located = replace(located, places={**located.places, (place,): place})
            problems.append(Problem((place,), str(error), ()))
    return located, problems


def _keys(data: dict[str, Any], path: str, parts: Collection[str]) -> Keys:
    keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
    if keys[0] not in parts:
        inside = [part for part, value in data.items() if isinstance(value, dict) and keys[0] in value]
        hint = f"; did you mean {inside[0]}.{path}?" if inside else ""
        raise ValueError(f"must begin with {', '.join(f'{part}.' for part in parts)}{hint}")
    node: Any = data
    for i, key in enumerate(keys):
        word = space_word(node) if i > 1 else None
        if word and key != word:
            here = dotted(keys[:i])
            inside_it = f"; for one option write {here}.choice.0.{dotted(keys[i:])}" if word == "choice" else ""
            raise ValueError(f"{here} is a search space, {shown_value(node)}: set it whole{inside_it}")
        if isinstance(node, dict):
            node = node.get(str(key))
        else:
            node = node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None
    return keys
