"""One search space, written as `{uniform: [a, b]}` in place of a value: its checks, and its Parameter."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdtrain.config.other_spellings import other_space
from kdtrain.config.problems import MOST_SHOWN, KeyPath, Problem, format_unquoted, format_value

Label = str | int | float | bool | None
Values = dict[str, Label]
INT_KINDS = ("int", "logint")
RANGE_KINDS = ("uniform", "loguniform", *INT_KINDS)
KINDS = (*RANGE_KINDS, "choice")
MOST_OPTIONS = 512
"""Options of a choice, and options and bounds of all spaces of a recipe together: each is checked with a recipe."""
MOST_OF_LABEL = 1000
LARGEST, LARGEST_WHOLE = 1e300, 10**15
"""Bounds of a range: beyond them the arithmetic of a sampler overflows."""


@dataclass(frozen=True)
class Parameter:
    """One searched hyperparameter. It exists only while earlier choices have the labels in `conditions`."""

    name: str  # the path in the recipe, with the chosen label after each choice: `method[kd].temperature`
    path: KeyPath  # in a recipe without spaces: ("method", "temperature")
    source: KeyPath  # in the file: ("method", "choice", 0, "temperature")
    kind: str
    low: float = math.nan  # NaN for a choice
    high: float = math.nan
    labels: tuple[Label, ...] = ()  # one for each option of a choice
    conditions: Mapping[str, Label] = field(default_factory=dict)

    @property
    def is_int(self) -> bool:
        return self.kind in INT_KINDS

    @property
    def is_log(self) -> bool:
        return self.kind in ("loguniform", "logint")

    @property
    def extremes(self) -> tuple[Label, ...]:
        """Every label of a choice, or both bounds of a range."""
        return self.labels if self.kind == "choice" else (self.low, self.high)

    @property
    def description(self) -> str:
        """The space in a sentence: `uniform [0.0, 1.0]`, or the labels of a choice."""
        if self.kind == "choice":
            return ", ".join(format_unquoted(label) for label in self.labels)
        return f"{self.kind} [{self.low!r}, {self.high!r}]"

    def grid_values(self, points: int | None) -> tuple[Label, ...]:
        """Return every label of a choice, or `points` evenly spaced values of a range, with both bounds."""
        if self.kind == "choice":
            return self.labels
        if points is None or points < 2:
            raise ValueError(f"a grid over {self.name} needs at least 2 points, got {points}")
        low, high, shares = self.low, self.high, [i / (points - 1) for i in range(1, points - 1)]
        inner = [low * (high / low) ** share if self.is_log else low + (high - low) * share for share in shares]
        values = [low, *inner, high]
        return tuple(sorted({round(value) for value in values})) if self.is_int else tuple(values)

    def contains(self, value: object) -> bool:
        """Return True if the value is a label of the choice, or a number in the range; booleans are not numbers."""
        if self.kind == "choice":
            return any(yaml_equal(value, label) for label in self.labels)
        return is_number(value, self.is_int) and self.low <= value <= self.high  # type: ignore[operator]

    def as_json(self) -> dict[str, Any]:
        """Return the parameter as study.json stores it."""
        is_choice = self.kind == "choice"
        return {
            "name": self.name,
            "kind": self.kind,
            "low": None if is_choice else self.low,
            "high": None if is_choice else self.high,
            "choices": list(self.labels) if is_choice else None,
            "conditions": dict(self.conditions),
        }


@dataclass(frozen=True)
class Position:
    """The position of a node during a walk through a tree; the attributes are those of the Parameter there."""

    source: KeyPath = ()
    path: KeyPath = ()
    name: str = ""
    conditions: Mapping[str, Label] = field(default_factory=dict)

    def child(self, key: str | int) -> "Position":
        """Return the position of a mapping's value or a list's item."""
        name = f"{self.name}.{key}" if self.name else str(key)
        return Position((*self.source, key), (*self.path, key), name, self.conditions)

    def parameter(self, node: Any) -> Parameter:
        """Return the Parameter that the search space `node` defines here."""
        kind, written = next(iter(node.items()))
        parameter = Parameter(self.name, self.path, self.source, kind, conditions=self.conditions)
        if kind == "choice":
            return replace(parameter, labels=_labels(written))
        low, high = written if parameter.is_int else (float(end) for end in written)
        return replace(parameter, low=low, high=high)

    def option(self, node: Any, parameter: Parameter, index: int) -> "tuple[Any, Position]":
        """Return one option of the choice `node`, and its position."""
        label = parameter.labels[index]
        conditions = {**self.conditions, self.name: label}
        name = f"{self.name}[{format_unquoted(label)}]"
        position = replace(self, source=(*self.source, "choice", index), conditions=conditions, name=name)
        return node["choice"][index], position


ROOT = Position()


def space_kind(node: Any) -> str | None:
    """Return the kind of a search space, or None for an ordinary value."""
    word = next(iter(node)) if isinstance(node, dict) and len(node) == 1 else None
    return word if word in KINDS else None


def is_number(value: object, whole: bool = False) -> bool:
    """Return True for an int, or a float unless `whole`; booleans are not numbers."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def yaml_equal(a: object, b: object) -> bool:
    """Return True if two values are equal in YAML: 1 equals 1.0, but not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _labels(options: Sequence[Any]) -> tuple[Label, ...]:
    labels: dict[Label, None] = {}
    counts: dict[str, int] = {}
    for option in options:
        label = first = label_of(option)
        while label in labels:
            text = format_unquoted(first)
            counts[text] = counts.get(text, 1) + 1
            label = f"{text} ({counts[text]})"
        labels[label] = None
    return tuple(labels)


def label_of(option: Any) -> Label:
    """Return an option's `name`, its `model`, or the value itself; for another mapping its keys and plain values, for
    a list those of its items.

    No label is None, because None is the value of a parameter that does not exist.
    """
    if not isinstance(option, dict | list):
        return "null" if option is None else option
    if isinstance(option, list):
        return format_value([label_of(item) for item in option[:MOST_SHOWN]])
    if kind := space_kind(option):
        return kind
    for key in ("name", "model"):
        if isinstance(option.get(key), str):
            return str(option[key])
    return ", ".join(
        key if isinstance(value, dict | list) else f"{key}: {format_unquoted(value)}" for key, value in option.items()
    )


def count_options(tree: Any) -> int:
    """Return the number of options of all choices and of bounds of all ranges."""
    kind = space_kind(tree)
    below = sum(count_options(child) for _, child in items_of(tree))
    return below + (len(tree["choice"]) if kind == "choice" else 2 if kind else 0)


def count_combinations(tree: Any) -> int:
    """Return the number of combinations of the options of all choices."""
    if space_kind(tree) == "choice":
        return sum(map(count_combinations, tree["choice"]))
    return math.prod(count_combinations(child) for _, child in items_of(tree))


def items_of(node: Any) -> Sequence[tuple[str | int, Any]]:
    """Return the keys and values of a mapping, or the indices and items of a list; nothing of a scalar."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def check_spaces(tree: Any) -> tuple[Any, list[Problem]]:
    """Return the tree with every invalid space replaced by a plain value, and the problems of those spaces."""
    problems: list[Problem] = []

    def visit(node: Any, source: KeyPath, path: KeyPath) -> Any:
        if isinstance(node, list):
            return [visit(child, (*source, i), (*path, i)) for i, child in enumerate(node)]
        if not isinstance(node, dict):
            return node
        found = list(_space_problems(node))
        problems.extend(Problem((*source, *below), text, path) for below, text in found)
        if any(not below for below, _ in found):
            return _first_number(next(iter(node.values())))
        if space_kind(node) == "choice":
            return {"choice": [visit(option, (*source, "choice", i), path) for i, option in enumerate(node["choice"])]}
        return {key: visit(child, (*source, key), (*path, key)) for key, child in node.items()}

    return visit(tree, (), ()), problems


def _space_problems(node: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path below the node, sentence) for a mapping that is a space or resembles one."""
    words = [key for key in node if key in KINDS]
    if words and len(node) > 1:
        others = ", ".join(key for key in node if key != words[0])
        yield (), f"a search space must be the only key, as in {{{words[0]}: [...]}}; remove {others}"
        return
    word, written = next(iter(node.items())) if len(node) == 1 else ("", None)
    if word == "choice":
        yield from _choice_problems(written)
    elif word in RANGE_KINDS:
        yield from (((), text) for text in _range_problems(word, written))
    elif isinstance(written, list) and (near := difflib.get_close_matches(word, KINDS, n=1, cutoff=0.76)):
        yield (), f"unknown search space '{word}'; nearest: {near[0]} (choices: {', '.join(KINDS)})"
    elif (sentence := other_space(node)) is not None:
        yield (), sentence


def _choice_problems(options: Any) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(options, list) or not options:
        yield (), f"choice must be a list of at least one option, got {format_value(options)}"
        return
    if len(options) > MOST_OPTIONS:
        yield (), f"choice must have at most {MOST_OPTIONS} options, got {len(options):,}"
        return
    for i, option in enumerate(options):
        first = next(j for j, other in enumerate(options) if yaml_equal(other, option))
        if first < i:
            yield ("choice", i), f"option {i + 1} repeats option {first + 1}: {format_value(option)}"
        if len(str(label_of(option))) > MOST_OF_LABEL:
            yield ("choice", i), f"must have a name of at most {MOST_OF_LABEL} characters, got {format_value(option)}"


def _range_problems(kind: str, ends: Any) -> Iterator[str]:
    whole = kind in INT_KINDS
    if not isinstance(ends, list) or len(ends) != 2 or not all(is_number(end, whole) for end in ends):
        yield f"{kind} must be two {'whole ' if whole else ''}numbers, [low, high], got {format_value(ends)}"
        return
    low, high = ends
    largest = LARGEST_WHOLE if whole else LARGEST
    if max(abs(low), abs(high)) > largest:
        yield f"{kind} must be within -{largest:g} and {largest:g}, got {format_value(ends)}"
        return
    if low > high:
        yield f"{kind} must go from low to high, got {format_value(ends)}; write [{high!r}, {low!r}]"
    if low == high:
        yield f"{kind} must have two different ends, got {format_value(ends)}; for a fixed value write {low!r}"
    if kind == "loguniform" and min(ends) <= 0:
        yield f"loguniform must be > 0, got {format_value(ends)}"
    if kind == "logint" and min(ends) < 1:
        yield f"logint must be >= 1, got {format_value(ends)}"


def _first_number(written: Any) -> Any:
    return next((item for item in written if is_number(item)), None) if isinstance(written, list) else None
