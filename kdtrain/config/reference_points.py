"""study.published: points of the recipe in the user's words -> the values of the space that they mean."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from kdtrain.config.parameter import TOP, At, Parameter, Values, is_number, same, space_word
from kdtrain.config.problems import Problem, dotted, nearest, shown_value
from kdtrain.config.space import parameters
from kdtrain.methods.loss_weights import SPELLINGS
from kdtrain.methods.registry import loss_weights_of

Matched = tuple[Values, list[Problem]]


def match_all(tree: Any, points: Sequence[Any]) -> tuple[tuple[Values, ...], list[Problem]]:
    """The values of every point that matches, and what is wrong with the others, each by its number."""
    found: list[Values] = []
    problems: list[Problem] = []
    for i, point in enumerate(points):
        if not isinstance(point, dict):
            continue  # said elsewhere
        values, wrong = match(tree, point)
        if not wrong and values in found:
            wrong = [Problem((), "repeats an earlier published point")]
        if not wrong:
            found.append(values)
        problems += [problem.below((i,)) for problem in wrong]
    return tuple(found), problems


def match(tree: Any, point: Any) -> Matched:
    """The values at which the tree equals a published point, and what is wrong with the point.

    A point gives what is searched and may repeat the rest. At a choice it picks the option that it equals,
    or whose `name` or `model` it gives. A `balance` may be spelt in another way than the space's.
    """
    return _match(tree, TOP, point)


def _match(node: Any, at: At, given: Any, owner: object = None) -> Matched:
    """`owner`: the name of the mapping around it; a balance means what its method says."""
    word = space_word(node)
    if word == "choice":
        return _match_choice(node, at, given, owner)
    if word is not None:
        return _match_range(node, at, given)
    if isinstance(node, dict) and isinstance(given, dict):
        return _match_mapping(node, at, given, owner)
    if isinstance(node, list) and isinstance(given, list) and len(given) == len(node):
        return _gather(_match(node[i], at.below(i), given[i]) for i in range(len(node)))
    if same(node, given) or (is_number(node) and is_number(given) and math.isclose(node, given)):
        return {}, []
    fixed = "a mapping" if isinstance(node, dict) else shown_value(node)
    return {}, [Problem(at.path, f"is fixed to {fixed} in the recipe, got {shown_value(given)}")]


def _match_range(node: Any, at: At, given: Any) -> Matched:
    parameter = at.parameter(node)
    if not is_number(given, parameter.is_int):
        wanted = "a whole number" if parameter.is_int else "a number"
        return {}, [Problem(at.path, f"must be {wanted}, got {shown_value(given)}")]
    for end in (parameter.low, parameter.high):
        given = end if math.isclose(given, end) else given  # a respelt balance is off by rounding
    if not parameter.holds(given):
        return {}, [Problem(at.path, f"lies outside what is searched, {parameter.shown}, got {shown_value(given)}")]
    return {parameter.name: given if parameter.is_int else float(given)}, []


def _match_choice(node: Any, at: At, given: Any, owner: object) -> Matched:
    parameter = at.parameter(node)
    options = node["choice"]
    named = [key for key in ("name", "model") if len({str(_own(option, key)) for option in options}) > 1]
    meant = [i for i, option in enumerate(options) if _meant(option, given, named)]
    refused: list[list[Problem]] = []
    for i in sorted(meant, key=lambda i: _keys(node["choice"][i]) != _keys(given)):
        values, problems = _match(*at.chosen(node, parameter, i), given, owner)
        if not problems:
            return {parameter.name: parameter.labels[i], **values}, []
        refused.append(problems)
    if len(refused) == 1 and isinstance(given, dict):
        return {}, refused[0]
    return {}, [Problem(at.path, f"is none of the options ({parameter.shown}), got {shown_value(given)}")]


def _meant(option: Any, given: Any, named: list[str]) -> bool:
    """Whether a point can mean this option: it says `name` and `model` where the options differ in them, and alike."""
    if not isinstance(option, dict) or space_word(option):
        return True
    own = {key: option[key] for key in named if isinstance(option.get(key), str)}
    return isinstance(given, dict) and all(given.get(key) == value for key, value in own.items())


def _own(option: Any, key: str) -> Any:
    return option.get(key) if isinstance(option, dict) else None


def _keys(value: Any) -> object:
    return set(value) if isinstance(value, dict) else None


def _match_mapping(node: dict[str, Any], at: At, given: dict[str, Any], owner: object) -> Matched:
    spelling = next(iter(node)) if at.path[-1:] == ("balance",) and len(node) == 1 else ""
    if spelling in SPELLINGS and given and set(given) != {spelling}:
        return _match_balance(node, at, given, owner)
    name = node.get("name")
    parts = [
        _match(child, at.below(key), given[key], name) if key in given else ({}, _left_out(child, at.below(key)))
        for key, child in node.items()
    ]
    for key in (key for key in given if key not in node):
        hint = nearest(node, key) or f"; written there: {', '.join(node)}"
        text = f"is not written in the recipe, so a published point cannot set it{hint}"
        parts.append(({}, [Problem((*at.path, key), text)]))
    return _gather(parts)


def _left_out(node: Any, at: At) -> list[Problem]:
    """What a point that says nothing here leaves open."""

    def problem(parameter: Parameter) -> Problem:
        return Problem(parameter.path, f"is searched ({parameter.shown}), so a published point must give it")

    return [problem(parameter) for parameter in parameters(node, at) if parameter.conditions == at.conditions]


def _match_balance(node: dict[str, Any], at: At, given: dict[str, Any], method: object) -> Matched:
    wanted = next(iter(node))
    try:
        respelt = loss_weights_of(method).model_validate(given).respell(wanted)
    except ValidationError:
        text = f"must be one of {', '.join(SPELLINGS)} with a number, got {shown_value(given)}"
        return {}, [Problem(at.path, text)]
    except ValueError as error:
        return {}, [Problem(at.path, str(error))]
    values, problems = _match(node[wanted], at.below(wanted), respelt)
    note = f" ({shown_value(given)} said as {wanted})"
    return values, [Problem(at.path, f"{dotted(p.keys[len(at.path) :])} {p.text}{note}") for p in problems]


def _gather(parts: Iterable[Matched]) -> Matched:
    values: Values = {}
    problems: list[Problem] = []
    for found, wrong in parts:
        values |= found
        problems += wrong
    return values, problems
