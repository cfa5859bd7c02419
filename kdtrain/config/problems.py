"""One mistake of a file, and the words that sentences about mistakes share."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

Keys = tuple[str | int, ...]
"""Where a value stands: ("recipe", "method", "choice", 0, "temperature")."""


@dataclass(frozen=True)
class Problem:
    """One mistake. `keys` finds its line; `shown` is the path as the user thinks of it, if another."""

    keys: Keys
    text: str
    shown: Keys | None = None

    def below(self, parent: Keys) -> "Problem":
        return replace(self, keys=parent + self.keys, shown=parent + (self.keys if self.shown is None else self.shown))


def dotted(keys: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in keys)


def choices(known: Collection[str], wrong: str = "") -> str:
    """The end of a sentence: `choices: none, kd; nearest: kd`."""
    return f"choices: {', '.join(known)}{nearest(known, wrong)}"


def nearest(known: Collection[str], wrong: str) -> str:
    """The end of a sentence: `; nearest: kd`, or nothing where none is near."""
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"; nearest: {near[0]}" if near else ""


def shown_value(value: Any) -> str:
    """A value in a sentence: as one would write it in YAML, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {unquoted(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(unquoted(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unquoted(value: Any) -> str:
    """The same without quotes around text."""
    return value if isinstance(value, str) else shown_value(value)
