"""Reference points: `study.published`, points of the recipe as a document reports them, as values of the space."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from kdtrain.config.parameter import ROOT, Label, Position, Values, is_number, space_kind, yaml_equal
from kdtrain.config.problems import Problem, dotted, format_value, nearest_hint
from kdtrain.config.space import parameters
from kdtrain.methods.loss_weights import SPELLINGS
from kdtrain.methods.registry import loss_weights_of

Matched = tuple[Values, list[Problem]]
Found = Iterator[Problem | tuple[str, Label]]
"""What a walk finds: the name and value of a parameter, or a problem of the point."""


def match_points(tree: Any, points: Sequence[Any]) -> tuple[tuple[Values, ...], list[Problem]]:
    """Return the values of every point that fits the tree, and the problems of the others, by their number."""
    matched: list[Values] = []
    problems: list[Problem] = []
    for i, point in enumerate(points):
        if not isinstance(point, dict):
            continue  # the check of the study reports it
        values, wrong = match_point(tree, point)
        if not wrong and values in matched:
            wrong = [Problem((), "repeats an earlier published point")]
        if not wrong:
            matched.append(values)
        problems += [problem.under((i,)) for problem in wrong]
    return tuple(matched), problems


def match_point(tree: Any, point: Any) -> Matched:
    """Return the values at which the tree, a recipe with spaces, equals a reference point, and the point's problems.

    The point has everything that is searched and may repeat the rest. At a choice it equals an option, or has the
    `name` or `model` of one. Its `balance` may use another spelling than the tree's.
    """
    return _sorted(_match(tree, ROOT, point))


def _sorted(found: Found) -> Matched:
    values: Values = {}
    problems: list[Problem] = []
    for item in found:
        if isinstance(item, Problem):
            problems.append(item)
        else:
            values[item[0]] = item[1]
    return values, problems


def _match(node: Any, position: Position, given: Any, owner: object = None) -> Found:
    """Match one node; `owner` is the `name` of the mapping around it, which defines the meaning of a `balance`."""
    kind = space_kind(node)
    if kind == "choice":
        yield from _match_choice(node, position, given, owner)
    elif kind is not None:
        yield from _match_range(node, position, given)
    elif isinstance(node, dict) and isinstance(given, dict):
        yield from _match_mapping(node, position, given, owner)
    elif isinstance(node, list) and isinstance(given, list) and len(given) == len(node):
        for i, child in enumerate(node):
            yield from _match(child, position.child(i), given[i])
    elif not (yaml_equal(node, given) or (is_number(node) and is_number(given) and math.isclose(node, given))):
        fixed = "a mapping" if isinstance(node, dict) else format_value(node)
        yield Problem(position.path, f"is fixed to {fixed} in the recipe, got {format_value(given)}")


def _match_range(node: Any, position: Position, given: Any) -> Found:
    parameter = position.parameter(node)
    if not is_number(given, parameter.is_int):
        kind = "a whole number" if parameter.is_int else "a number"
        yield Problem(position.path, f"must be {kind}, got {format_value(given)}")
        return
    for bound in (parameter.low, parameter.high):
        given = bound if math.isclose(given, bound) else given  # the conversion of a balance rounds
    if parameter.contains(given):
        yield parameter.name, given if parameter.is_int else float(given)
    else:
        text = f"must be in the searched range, {parameter.description}, got {format_value(given)}"
        yield Problem(position.path, text)


def _match_choice(node: Any, position: Position, given: Any, owner: object) -> Found:
    parameter = position.parameter(node)
    options = node["choice"]
    distinct = [key for key in ("name", "model") if len({str(_get(option, key)) for option in options}) > 1]
    compatible = [i for i, option in enumerate(options) if _is_compatible(option, given, distinct)]
    refused: list[list[Problem]] = []
    for i in sorted(compatible, key=lambda i: _key_set(options[i]) != _key_set(given)):  # options with equal keys first
        values, problems = _sorted(_match(*position.option(node, parameter, i), given, owner))
        if not problems:
            yield parameter.name, parameter.labels[i]
            yield from values.items()
            return
        refused.append(problems)
    if len(refused) == 1 and isinstance(given, dict):
        yield from refused[0]
    else:
        text = f"must be one of the options, {parameter.description}, got {format_value(given)}"
        yield Problem(position.path, text)


def _is_compatible(option: Any, given: Any, distinct: list[str]) -> bool:
    """Return True if the point repeats the option's name and model wherever the options differ in them."""
    if not isinstance(option, dict) or space_kind(option):
        return True
    own = {key: option[key] for key in distinct if isinstance(option.get(key), str)}
    return isinstance(given, dict) and all(given.get(key) == value for key, value in own.items())


def _get(option: Any, key: str) -> Any:
    return option.get(key) if isinstance(option, dict) else None


def _key_set(value: Any) -> object:
    return set(value) if isinstance(value, dict) else None


def _match_mapping(node: dict[str, Any], position: Position, given: dict[str, Any], owner: object) -> Found:
    spelling = next(iter(node)) if position.path[-1:] == ("balance",) and len(node) == 1 else ""
    if spelling in SPELLINGS and given and set(given) != {spelling}:
        yield from _match_balance(node, position, given, owner)
        return
    for key, child in node.items():
        below = position.child(key)
        if key in given:
            yield from _match(child, below, given[key], node.get("name"))
            continue
        for left_out in parameters(child, below):
            if left_out.conditions == below.conditions:
                text = f"is searched ({left_out.description}), so a published point must give it"
                yield Problem(left_out.path, text)
    for key in (key for key in given if key not in node):
        hint = nearest_hint(node, key) or f"; written there: {', '.join(node)}"
        yield Problem((*position.path, key), f"is not written in the recipe, so a published point cannot set it{hint}")


def _match_balance(node: dict[str, Any], position: Position, given: dict[str, Any], method: object) -> Found:
    spelling = next(iter(node))
    try:
        converted = loss_weights_of(method).model_validate(given).respell(spelling)
    except ValidationError:
        text = f"must be one of {', '.join(SPELLINGS)} with a number, got {format_value(given)}"
        yield Problem(position.path, text)
        return
    except ValueError as error:
        yield Problem(position.path, str(error))
        return
    note = f" ({format_value(given)} converted to {spelling})"
    for found in _match(node[spelling], position.child(spelling), converted):
        if isinstance(found, Problem):
            rule = f"{dotted(found.path[len(position.path) :])} {found.text}{note}"
            yield Problem(position.path, rule)
        else:
            yield found
