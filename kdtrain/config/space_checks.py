"""Is every search space of a tree one that can be searched?"""

import difflib
from collections.abc import Iterator
from typing import Any

from kdtrain.config.parameter import RANGES, WHOLE, WORDS, is_number, same, space_word
from kdtrain.config.problems import Keys, Problem, shown_value


def checked(tree: Any) -> tuple[Any, list[Problem]]:
    """The tree with broken spaces replaced by something harmless, and what is wrong with them."""
    problems: list[Problem] = []

    def visit(node: Any, keys: Keys, path: Keys) -> Any:
        if isinstance(node, list):
            return [visit(child, (*keys, i), (*path, i)) for i, child in enumerate(node)]
        if not isinstance(node, dict):
            return node
        found = list(_space_problems(node))
        problems.extend(Problem((*keys, *below), text, path) for below, text in found)
        if any(not below for below, _ in found):
            return _first_number(next(iter(node.values())))
        if space_word(node) == "choice":
            return {"choice": [visit(option, (*keys, "choice", i), path) for i, option in enumerate(node["choice"])]}
        return {key: visit(child, (*keys, key), (*path, key)) for key, child in node.items()}

    return visit(tree, (), ()), problems


def _space_problems(node: dict[str, Any]) -> Iterator[tuple[Keys, str]]:
    """(where below the node, what is wrong) of a mapping that is a space, or was meant to be one."""
    words = [key for key in node if key in WORDS]
    if words and len(node) > 1:
        others = ", ".join(key for key in node if key != words[0])
        yield (), f"a search space stands alone, as {{{words[0]}: [...]}}; remove {others}"
        return
    word, written = next(iter(node.items())) if len(node) == 1 else ("", None)
    if word == "choice":
        yield from _choice_problems(written)
    elif word in RANGES:
        yield from (((), text) for text in _range_problems(word, written))
    elif isinstance(written, list) and (near := difflib.get_close_matches(word, WORDS, n=1, cutoff=0.76)):
        yield (), f"unknown search space '{word}'; nearest: {near[0]} (choices: {', '.join(WORDS)})"


def _choice_problems(options: Any) -> Iterator[tuple[Keys, str]]:
    if not isinstance(options, list) or not options:
        yield (), f"choice takes a list of at least one option, got {shown_value(options)}"
        return
    for i, option in enumerate(options):
        first = next(j for j, other in enumerate(options) if same(other, option))
        if first < i:
            yield ("choice", i), f"option {i + 1} repeats option {first + 1}: {shown_value(option)}"


def _range_problems(kind: str, ends: Any) -> Iterator[str]:
    whole = kind in WHOLE
    if not isinstance(ends, list) or len(ends) != 2 or not all(is_number(end, whole) for end in ends):
        yield f"{kind} takes two {'whole ' if whole else ''}numbers, [low, high], got {shown_value(ends)}"
        return
    low, high = ends
    if low > high:
        yield f"{kind} must go from low to high, got {shown_value(ends)}; write [{high!r}, {low!r}]"
    if low == high:
        yield f"{kind} must have two different ends, got {shown_value(ends)}; to fix it write {low!r}"
    if kind == "loguniform" and min(ends) <= 0:
        yield f"loguniform must lie above 0, got {shown_value(ends)}"
    if kind == "logint" and min(ends) < 1:
        yield f"logint must begin at 1 or above, got {shown_value(ends)}"


def _first_number(written: Any) -> Any:
    return next((item for item in written if is_number(item)), None) if isinstance(written, list) else None
