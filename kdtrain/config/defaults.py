"""The points of `study.start_from: defaults`: each method as its authors use it, in the middle of everything else."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdtrain.config.parameter import ROOT, Label, Parameter, Position, Values, label_of, space_kind
from kdtrain.config.problems import Problem, format_value
from kdtrain.config.space import parameters, resolve_with
from kdtrain.methods.authors import authors_config, method_class, spelled
from kdtrain.methods.base import MethodConfig
from kdtrain.methods.loss_weights import SPELLINGS

ABSENT = object()


def default_points(tree: dict[str, Any]) -> tuple[tuple[Values, ...], list[Problem]]:
    """Return a point for each option of the choice of methods, and the authors' values that the space does not have.

    A searched value of the method is the authors' one; any other is the middle of its range, of the logarithm for
    logarithmic ranges, or the first option.
    """
    choice = next((each for each in parameters(tree) if each.path in (("method",), ("method", "name"))), None)
    points: list[Values] = []
    problems: list[Problem] = []
    for label in (None,) if choice is None else choice.labels:
        fixed = {} if choice is None else {choice.name: label}
        values, wrong = _default_point(tree, fixed)
        problems += [problem for problem in wrong if problem not in problems]
        if values not in points:
            points.append(values)
    return tuple(points), problems


def _default_point(tree: dict[str, Any], fixed: Values) -> tuple[Values, list[Problem]]:
    problems: list[Problem] = []
    written = _written(tree["method"], ROOT.child("method"), fixed)
    method = method_class(written["name"])
    try:
        config = authors_config(method, written)
    except ValidationError:
        text = f"{written['name']} has no default of a searched value that goes with what is written; remove start_from"
        return {}, [Problem(("study", "start_from"), text)]

    def value_of(parameter: Parameter) -> Label:
        if parameter.name in fixed:
            return fixed[parameter.name]
        value = _authors_value(config, parameter) if parameter.path[0] == "method" else ABSENT
        if value is ABSENT:
            return middle(parameter)
        if not parameter.contains(value):
            text = (
                f"must contain {format_value(value)}, which study.start_from tries first, as the authors of"
                f" {written['name']} give it; got {parameter.description}"
            )
            problems.append(Problem(("recipe", *parameter.source), text, ("recipe", *parameter.path)))
            return middle(parameter)
        return value  # type: ignore[return-value]

    return resolve_with(tree, value_of).values, problems


def middle(parameter: Parameter) -> Label:
    """Return the middle of a range, of the logarithm for logarithmic ranges, or the first option of a choice."""
    if parameter.kind == "choice":
        return parameter.labels[0]
    low, high = parameter.low, parameter.high
    value = math.sqrt(low * high) if parameter.is_log else (low + high) / 2
    return round(value) if parameter.is_int else value


def _written(node: Any, position: Position, fixed: Mapping[str, Label]) -> Any:
    """Return what is written in a part of the recipe, without what is searched; ABSENT if nothing is."""
    kind = space_kind(node)
    if kind is not None:
        parameter = position.parameter(node)
        if parameter.name not in fixed:
            return ABSENT
        return _written(*position.option(node, parameter, parameter.labels.index(fixed[parameter.name])), fixed)
    if isinstance(node, dict):
        parts = {key: _written(child, position.child(key), fixed) for key, child in node.items()}
        found = {key: part for key, part in parts.items() if part is not ABSENT}
        return found if found or not node else ABSENT
    if isinstance(node, list):
        items = [_written(child, position.child(i), fixed) for i, child in enumerate(node)]
        return ABSENT if any(item is ABSENT for item in items) else items
    return node


def _authors_value(config: MethodConfig, parameter: Parameter) -> Any:
    """Return the value of a searched parameter in a method's config, or its label; ABSENT if it has none there."""
    key, *below = parameter.path[1:]
    balance = getattr(config, "balance", None)
    if key == "balance" and balance is not None:
        return spelled(balance, str(below[0])) if below and below[0] in SPELLINGS else ABSENT
    value: Any = config.model_dump(mode="json")
    for part in parameter.path[1:]:
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    if parameter.kind == "choice":
        return label_of(value)
    return float(value) if isinstance(value, int) and not parameter.is_int else value
