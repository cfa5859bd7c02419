"""SearchSpace: `{uniform: [a, b]}`, `loguniform`, `int`, `logint` or `{choice: [...]}` in place of a value.

An option of a choice may hold spaces itself: its parameters exist only while that option is chosen.
A tree is the plain data of a recipe with spaces in it; values are {parameter name: number, or label of
the chosen option}.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdtrain.config.parameter import TOP, At, Label, Parameter, Values, space_word
from kdtrain.config.problems import Keys, Problem

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Resolved:
    """A tree without spaces, the values that were decided, and where each value of the tree was written."""

    tree: Any
    values: Values
    sources: dict[Keys, Keys]  # {path: path in the file}

    def at_source(self, problem: Problem) -> Problem:
        """A problem of the concrete tree, at the place in the file that the value came from."""
        keys = problem.keys
        while keys not in self.sources:
            keys = keys[:-1]
        return Problem((*self.sources[keys], *problem.keys[len(keys) :]), problem.text, problem.keys)


def parameters(tree: Any, at: At = TOP) -> list[Parameter]:
    """Everything that is searched, in the order of the file, conditional parameters after their choice."""
    if space_word(tree) is None:
        return [parameter for key, child in _items(tree) for parameter in parameters(child, at.below(key))]
    own = at.parameter(tree)
    options = (at.chosen(tree, own, i) for i in range(len(own.labels)))
    return [own, *(parameter for option in options for parameter in parameters(*option))]


def resolve(tree: Any, values: Mapping[str, Label]) -> Resolved:
    """The tree with each space replaced by its value; ValueError unless `values` are just the active ones."""

    def decide(parameter: Parameter) -> Label:
        if parameter.name not in values:
            raise ValueError(f"no value for {parameter.name}")
        value = values[parameter.name]
        if not parameter.holds(value):
            raise ValueError(f"{parameter.name} cannot be {value!r}: {parameter.shown}")
        return value

    resolved = walk(tree, decide)
    if unused := values.keys() - resolved.values.keys():
        raise ValueError(f"nothing in the tree takes a value for {', '.join(sorted(unused))}")
    return resolved


def walk(tree: Any, decide: Callable[[Parameter], Label]) -> Resolved:
    """The tree with every space replaced by what `decide` answers, asked in the order of the file."""
    values: Values = {}
    sources: dict[Keys, Keys] = {}

    def visit(node: Any, at: At) -> Any:
        sources[at.path] = at.source
        word = space_word(node)
        if word is None:
            if isinstance(node, dict):
                return {key: visit(child, at.below(key)) for key, child in node.items()}
            return [visit(child, at.below(i)) for i, child in enumerate(node)] if isinstance(node, list) else node
        parameter = at.parameter(node)
        decided = values[parameter.name] = decide(parameter)
        if word != "choice":
            return decided
        return visit(*at.chosen(node, parameter, parameter.labels.index(decided)))

    return Resolved(visit(tree, TOP), values, sources)


def suggest(trial: "Trial", tree: Any) -> Values:
    """Values drawn by an Optuna trial, define-by-run: a parameter is drawn only where it exists."""

    def draw(parameter: Parameter) -> Label:
        name, low, high = parameter.name, parameter.low, parameter.high
        if parameter.kind == "choice":
            return trial.suggest_categorical(name, parameter.labels)
        if parameter.is_int:
            return trial.suggest_int(name, int(low), int(high), log=parameter.is_log)
        return trial.suggest_float(name, low, high, log=parameter.is_log)

    return walk(tree, draw).values


def distributions(tree: Any, values: Mapping[str, Label]) -> "dict[str, BaseDistribution]":
    """What suggest() draws each of `values` from, as Optuna writes it: to rebuild a trial from its values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(parameter: Parameter) -> "BaseDistribution":
        if parameter.kind == "choice":
            return CategoricalDistribution(parameter.labels)
        if parameter.is_int:
            return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.is_log)
        return FloatDistribution(parameter.low, parameter.high, log=parameter.is_log)

    return {parameter.name: distribution(parameter) for parameter in parameters(tree) if parameter.name in values}


def probe_points(tree: Any) -> list[Values]:
    """Few values that touch everything written: each option and each end once, all else first or lowest."""

    def probe(chosen: Mapping[str, Label]) -> Values:
        return walk(tree, lambda parameter: chosen.get(parameter.name, parameter.ends[0])).values

    points = [probe({})]
    for parameter in parameters(tree):
        points += [probe({**parameter.conditions, parameter.name: end}) for end in parameter.ends]
    return [values for i, values in enumerate(points) if values not in points[:i]]


def combinations(tree: Any, subtrees: Sequence[str]) -> list[Values]:
    """Every way to choose below the given top-level keys; all else first or lowest."""
    return list(_product(tree, lambda p: p.ends if p.kind == "choice" and p.path[0] in subtrees else p.ends[:1]))


def grid(tree: Any, points: int | None) -> list[Values]:
    """Every option with every one of so many values of each range (None: no range), in the file's order."""
    return list(_product(tree, lambda parameter: parameter.spread(points)))


def grid_size(tree: Any, points: int | None, at: At = TOP) -> int:
    """len(grid(tree, points)), counted without building it."""
    word = space_word(tree)
    if word is None:
        return math.prod(grid_size(child, points, at.below(key)) for key, child in _items(tree))
    parameter = at.parameter(tree)
    if word != "choice":
        return len(parameter.spread(points))
    options = (at.chosen(tree, parameter, i) for i in range(len(parameter.labels)))
    return sum(grid_size(option, points, below) for option, below in options)


def _product(node: Any, options: Callable[[Parameter], Sequence[Label]], at: At = TOP) -> Iterator[Values]:
    """Every way to take one of its options for each parameter, the last parameter changing fastest."""
    if space_word(node) is None:
        children = [list(_product(child, options, at.below(key))) for key, child in _items(node)]
        for parts in itertools.product(*children):
            yield {name: value for part in parts for name, value in part.items()}
        return
    parameter = at.parameter(node)
    for value in options(parameter):
        below: Iterator[Values] = iter([{}])
        if parameter.kind == "choice":
            option, below_it = at.chosen(node, parameter, parameter.labels.index(value))
            below = _product(option, options, below_it)
        yield from ({parameter.name: value, **values} for values in below)


def _items(node: Any) -> Sequence[tuple[str | int, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []
