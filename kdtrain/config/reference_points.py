"""Reference points: `study.published`, points of the recipe as a document reports them, as values of the space."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from kdtrain.config.parameter import ROOT, Parameter, Position, Values, is_number, space_kind, yaml_equal
from kdtrain.config.problems import Problem, dotted, format_value, nearest_hint
from kdtrain.config.space import parameters
from kdtrain.methods.loss_weights import SPELLINGS
from kdtrain.methods.registry import loss_weights_of

Match = tuple[Values, list[Problem]]


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


def match_point(tree: Any, point: Any) -> Match:
    """Return the values at which the tree, a recipe with spaces, equals a reference point, and the point's problems.

    The point has everything that is searched and may repeat the rest. At a choice it equals an option, or has the
    `name` or `model` of one. Its `balance` may use another spelling than the tree's.
    """
    return _match(tree, ROOT, point)


def _match(node: Any, position: Position, given: Any, owner: object = None) -> Match:
    """Match one node; `owner` is the `name` of the mapping around it, which defines the meaning of a `balance`."""
    kind = space_kind(node)
    if kind == "choice":
        return _match_choice(node, position, given, owner)
    if kind is not None:
        return _match_range(node, position, given)
    if isinstance(node, dict) and isinstance(given, dict):
        return _match_mapping(node, position, given, owner)
    if isinstance(node, list) and isinstance(given, list) and len(given) == len(node):
        return _merge(_match(node[i], position.child(i), given[i]) for i in range(len(node)))
    if yaml_equal(node, given) or (is_number(node) and is_number(given) and math.isclose(node, given)):
        return {}, []
    fixed = "a mapping" if isinstance(node, dict) else format_value(node)
    return {}, [Problem(position.path, f"is fixed to {fixed} in the recipe, got {format_value(given)}")]


def _match_range(node: Any, position: Position, given: Any) -> Match:
    parameter = position.parameter(node)
    if not is_number(given, parameter.is_int):
        kind = "a whole number" if parameter.is_int else "a number"
        return {}, [Problem(position.path, f"must be {kind}, got {format_value(given)}")]
    for bound in (parameter.low, parameter.high):
        given = bound if math.isclose(given, bound) else given  # the conversion of a balance rounds
    if not parameter.contains(given):
        text = f"must be in the searched range, {parameter.description}, got {format_value(given)}"
        return {}, [Problem(position.path, text)]
    return {parameter.name: given if parameter.is_int else float(given)}, []


def _match_choice(node: Any, position: Position, given: Any, owner: object) -> Match:
    parameter = position.parameter(node)
    options = node["choice"]
    distinct = [key for key in ("name", "model") if len({str(_get(option, key)) for option in options}) > 1]
    compatible = [i for i, option in enumerate(options) if _is_compatible(option, given, distinct)]
    refused: list[list[Problem]] = []
    for i in sorted(compatible, key=lambda i: _key_set(options[i]) != _key_set(given)):  # options with equal keys first
        values, problems = _match(*position.option(node, parameter, i), given, owner)
        if not problems:
            return {parameter.name: parameter.labels[i], **values}, []
        refused.append(problems)
    if len(refused) == 1 and isinstance(given, dict):
        return {}, refused[0]
    text = f"must be one of the options, {parameter.description}, got {format_value(given)}"
    return {}, [Problem(position.path, text)]


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


def _match_mapping(node: dict[str, Any], position: Position, given: dict[str, Any], owner: object) -> Match:
    spelling = next(iter(node)) if position.path[-1:] == ("balance",) and len(node) == 1 else ""
    if spelling in SPELLINGS and given and set(given) != {spelling}:
        return _match_balance(node, position, given, owner)
    name = node.get("name")
    parts: list[Match] = []
    for key, child in node.items():
        below = position.child(key)
        parts.append(_match(child, below, given[key], name) if key in given else ({}, _missing(child, below)))
    for key in (key for key in given if key not in node):
        hint = nearest_hint(node, key) or f"; written there: {', '.join(node)}"
        text = f"is not written in the recipe, so a published point cannot set it{hint}"
        parts.append(({}, [Problem((*position.path, key), text)]))
    return _merge(parts)


def _missing(node: Any, position: Position) -> list[Problem]:
    """Return a problem for each parameter of a subtree that the point leaves out."""

    def problem(parameter: Parameter) -> Problem:
        return Problem(parameter.path, f"is searched ({parameter.description}), so a published point must give it")

    return [problem(found) for found in parameters(node, position) if found.conditions == position.conditions]


def _match_balance(node: dict[str, Any], position: Position, given: dict[str, Any], method: object) -> Match:
    spelling = next(iter(node))
    try:
        converted = loss_weights_of(method).model_validate(given).respell(spelling)
    except ValidationError:
        text = f"must be one of {', '.join(SPELLINGS)} with a number, got {format_value(given)}"
        return {}, [Problem(position.path, text)]
    except ValueError as error:
        return {}, [Problem(position.path, str(error))]
    values, problems = _match(node[spelling], position.child(spelling), converted)
    note = f" ({format_value(given)} converted to {spelling})"
    depth = len(position.path)
    return values, [Problem(position.path, f"{dotted(p.path[depth:])} {p.text}{note}") for p in problems]


def _merge(parts: Iterable[Match]) -> Match:
    values: Values = {}
    problems: list[Problem] = []
    for part_values, part_problems in parts:
        values |= part_values
        problems += part_problems
    return values, problems
