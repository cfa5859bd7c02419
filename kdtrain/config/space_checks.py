"""Checks of the search spaces in a tree."""

import difflib
from collections.abc import Iterator
from typing import Any

from kdtrain.config.parameter import INT_KINDS, KINDS, RANGE_KINDS, is_number, space_kind, yaml_equal
from kdtrain.config.problems import KeyPath, Problem, format_value


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


def _choice_problems(options: Any) -> Iterator[tuple[KeyPath, str]]:
    if not isinstance(options, list) or not options:
        yield (), f"choice must be a list of at least one option, got {format_value(options)}"
        return
    for i, option in enumerate(options):
        first = next(j for j, other in enumerate(options) if yaml_equal(other, option))
        if first < i:
            yield ("choice", i), f"option {i + 1} repeats option {first + 1}: {format_value(option)}"


def _range_problems(kind: str, ends: Any) -> Iterator[str]:
    whole = kind in INT_KINDS
    if not isinstance(ends, list) or len(ends) != 2 or not all(is_number(end, whole) for end in ends):
        yield f"{kind} must be two {'whole ' if whole else ''}numbers, [low, high], got {format_value(ends)}"
        return
    low, high = ends
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
