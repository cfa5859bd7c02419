"""Mistakes in a file, and the parts of sentences that describe them."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

KeyPath = tuple[str | int, ...]
"""The path of a value in plain data: ("recipe", "method", "choice", 0, "temperature")."""


@dataclass(frozen=True)
class Problem:
    """One mistake: the path of the wrong value, and a sentence.

    `shown_path` is the path in the message, if it differs: the path in the recipe, without the choices on the way.
    """

    path: KeyPath
    text: str
    shown_path: KeyPath | None = None

    def under(self, parent: KeyPath) -> "Problem":
        """Return the same problem with paths that start at the parent's root."""
        shown = self.path if self.shown_path is None else self.shown_path
        return replace(self, path=parent + self.path, shown_path=parent + shown)


def dotted(path: Sequence[str | int]) -> str:
    """Return a path as the user writes it: `recipe.method.temperature`."""
    return ".".join(str(key) for key in path)


def choices_hint(known: Collection[str], wrong: str = "") -> str:
    """Return the end of a sentence: `choices: none, kd; nearest: kd`."""
    return f"choices: {', '.join(known)}{nearest_hint(known, wrong)}"


def nearest_hint(known: Collection[str], wrong: str) -> str:
    """Return the end of a sentence, `; nearest: kd`, or an empty text if no known name is similar."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"; nearest: {near[0]}" if near else ""


def format_value(value: Any) -> str:
    """Return a value as it would be written in YAML, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {format_unquoted(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(format_unquoted(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def format_unquoted(value: Any) -> str:
    """Return a value as `format_value` does, but text without quotes and uncut."""
    return value if isinstance(value, str) else format_value(value)
