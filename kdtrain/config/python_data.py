"""Python data as the plain data that a YAML file would give."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from kdtrain.config.problems import KeyPath, Problem, format_value
from kdtrain.config.yaml_reader import Reading


def read_python(data: object) -> Reading:
    """Return Python data as dicts with text keys, lists, text, numbers, booleans and None.

    Tuples become lists, numbers of numpy become Python numbers, paths become text. All else is a problem. The `lines`
    of the result number the values in the order of the data.
    """
    order: dict[KeyPath, int] = {}
    problems: list[Problem] = []

    def report(path: KeyPath, text: str) -> None:
        order.setdefault(path, len(order) + 1)
        problems.append(Problem(path, text))

    def read(value: Any, path: KeyPath, enclosing: frozenset[int]) -> Any:
        order.setdefault(path, len(order) + 1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)  # a subclass becomes plain text
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            if not math.isfinite(value):
                return report(path, f"must be a finite number, got {float(value)}")
            return float(value)
        if isinstance(value, PurePath):
            return str(value)
        if id(value) in enclosing:
            return report(path, "must not contain itself")
        enclosing |= {id(value)}
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    report((*path, str(key)), f"a key must be text, got {format_value(key)}")
            texts = {str.__str__(key): child for key, child in value.items() if isinstance(key, str)}
            return {key: read(child, (*path, key), enclosing) for key, child in texts.items()}
        if isinstance(value, list | tuple):
            return [read(item, (*path, i), enclosing) for i, item in enumerate(value)]
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return report(path, f"must be text, a number, true, false, null, a list or a mapping, got {kind}")

    return Reading(read(data, (), frozenset()), order, tuple(problems))
