"""Search spaces in a recipe: what is searched, values to recipes, suggestions of Optuna, and grids.

A space is `{uniform: [a, b]}`, `loguniform`, `int`, `logint` or `{choice: [...]}` in place of a value. An option of a
choice may contain spaces; their parameters exist only while that option is chosen. A tree is the plain data of a
recipe with spaces in it. Values are {parameter name: number, or label of the chosen option}.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtrain.config.parameter import ROOT, Label, Parameter, Position, Values, items_of, space_kind
from kdtrain.config.problems import KeyPath, Problem

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Resolved:
    """A tree whose spaces are replaced by the values of the parameters that exist at this point."""

    tree: Any
    values: Values
    sources: dict[KeyPath, KeyPath]  # for each path of the tree the path in the file where its value is written

    def at_source(self, problem: Problem) -> Problem:
        """Return a problem of the resolved tree at the place in the file that its value comes from."""
        path = problem.path
        while path not in self.sources:
            path = path[:-1]
        return Problem((*self.sources[path], *problem.path[len(path) :]), problem.text, problem.path)


def parameters(tree: Any, position: Position = ROOT) -> list[Parameter]:
    """Return every parameter in the order of the file, conditional parameters after their choice."""
    if space_kind(tree) is None:
        return [parameter for key, child in items_of(tree) for parameter in parameters(child, position.child(key))]
    own = position.parameter(tree)
    options = (position.option(tree, own, i) for i in range(len(own.labels)))
    return [own, *(parameter for option in options for parameter in parameters(*option))]


def resolve(tree: Any, values: Mapping[str, Label]) -> Resolved:
    """Return the tree with a value in place of each space; raise ValueError if one is missing, wrong or superfluous."""

    def value_of(parameter: Parameter) -> Label:
        if parameter.name not in values:
            raise ValueError(f"no value for {parameter.name}")
        value = values[parameter.name]
        if not parameter.contains(value):
            raise ValueError(f"{parameter.name} cannot be {value!r}: {parameter.description}")
        return value

    resolved = resolve_with(tree, value_of)
    if unused := values.keys() - resolved.values.keys():
        raise ValueError(f"nothing in the tree takes a value for {', '.join(sorted(unused))}")
    return resolved


def resolve_with(tree: Any, value_of: Callable[[Parameter], Label]) -> Resolved:
    """Return the tree with each space replaced by `value_of(parameter)`, called in the order of the file."""
    values: Values = {}
    sources: dict[KeyPath, KeyPath] = {}

    def visit(node: Any, position: Position) -> Any:
        sources[position.path] = position.source
        kind = space_kind(node)
        if kind is None:
            if isinstance(node, dict):
                return {key: visit(child, position.child(key)) for key, child in node.items()}
            if isinstance(node, list):
                return [visit(child, position.child(i)) for i, child in enumerate(node)]
            return node
        parameter = position.parameter(node)
        value = values[parameter.name] = value_of(parameter)
        if kind != "choice":
            return value
        return visit(*position.option(node, parameter, parameter.labels.index(value)))

    return Resolved(visit(tree, ROOT), values, sources)


def suggest(trial: "Trial", tree: Any, fixed: Mapping[str, Label]) -> Values:
    """Return the values that an Optuna trial suggests, define-by-run: only for parameters that exist.

    Those of the `fixed` parameters are given.
    """

    def draw(parameter: Parameter) -> Label:
        name, low, high = parameter.name, parameter.low, parameter.high
        if name in fixed:
            return fixed[name]
        if parameter.kind == "choice":
            return trial.suggest_categorical(name, parameter.labels)
        if parameter.is_int:
            return trial.suggest_int(name, int(low), int(high), log=parameter.is_log)
        return trial.suggest_float(name, low, high, log=parameter.is_log)

    return resolve_with(tree, draw).values


def distributions(tree: Any, values: Mapping[str, Label], fixed: Collection[str] = ()) -> "dict[str, BaseDistribution]":
    """Return the Optuna distributions from which `suggest` draws `values`, to rebuild a trial from its values.

    The `fixed` parameters, which are not drawn, have none.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(parameter: Parameter) -> "BaseDistribution":
        if parameter.kind == "choice":
            return CategoricalDistribution(parameter.labels)
        kind = IntDistribution if parameter.is_int else FloatDistribution
        return kind(parameter.low, parameter.high, log=parameter.is_log)  # type: ignore[arg-type]

    drawn = [parameter for parameter in parameters(tree) if parameter.name in values and parameter.name not in fixed]
    return {parameter.name: distribution(parameter) for parameter in drawn}


def probe_points(tree: Any) -> list[Values]:
    """Return few points that contain every option and both bounds of every range.

    Each point differs from the first option and lowest value of everything in one parameter and its conditions.
    """

    def probe(chosen: Mapping[str, Label]) -> Values:
        return resolve_with(tree, lambda parameter: chosen.get(parameter.name, parameter.extremes[0])).values

    changes = [{}, *({**p.conditions, p.name: value} for p in parameters(tree) for value in p.extremes)]
    points = [probe(change) for change in changes]
    return [values for i, values in enumerate(points) if values not in points[:i]]


def combinations(tree: Any, subtrees: Sequence[str], largest: Sequence[str] = ()) -> list[Values]:
    """Return every combination of the options below the given top-level keys, all else first or lowest.

    Numbers whose own key is in `largest` have their largest value instead.
    """

    def options(parameter: Parameter) -> tuple[Label, ...]:
        if parameter.kind == "choice" and parameter.path[0] in subtrees:
            return parameter.extremes
        if parameter.path[-1] in largest:
            return (max(parameter.extremes, key=float),)  # type: ignore[arg-type]
        return parameter.extremes[:1]

    return list(_product(tree, options))


def student_models(tree: Any) -> list[str]:
    """Return the distinct models of the students of a tree."""
    students = [resolve(tree, values).tree["student"] for values in combinations(tree, ("student",))]
    return list(dict.fromkeys(str(student["model"]) for student in students))


def grid(tree: Any, points: int | None) -> list[Values]:
    """Return every combination of all options and of `points` values of each range, in the order of the file."""
    return list(_product(tree, lambda parameter: parameter.grid_values(points)))


def grid_size(tree: Any, points: int | None, position: Position = ROOT) -> int:
    """Return len(grid(tree, points)) without building the grid."""
    kind = space_kind(tree)
    if kind is None:
        return math.prod(grid_size(child, points, position.child(key)) for key, child in items_of(tree))
    parameter = position.parameter(tree)
    if kind != "choice":
        return len(parameter.grid_values(points))
    options = (position.option(tree, parameter, i) for i in range(len(parameter.labels)))
    return sum(grid_size(option, points, below) for option, below in options)


def _product(node: Any, options: Callable[[Parameter], Sequence[Label]], position: Position = ROOT) -> Iterator[Values]:
    """Yield every combination of the options of all parameters; the last parameter changes fastest."""
    if space_kind(node) is None:
        children = [list(_product(child, options, position.child(key))) for key, child in items_of(node)]
        for parts in itertools.product(*children):
            yield {name: value for part in parts for name, value in part.items()}
        return
    parameter = position.parameter(node)
    for value in options(parameter):
        inner: Iterator[Values] = iter([{}])
        if parameter.kind == "choice":
            option, below = position.option(node, parameter, parameter.labels.index(value))
            inner = _product(option, options, below)
        yield from ({parameter.name: value, **values} for values in inner)
