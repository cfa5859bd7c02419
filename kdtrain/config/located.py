"""A YAML file as plain data that knows its lines, so that a mistake is told with its place."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdtrain.config.problems import Keys, Problem, dotted, shown_value
from kdtrain.config.yaml_reader import read_yaml
from kdtrain.errors import UserError


@dataclass(frozen=True)
class Located:
    """A file as plain data, where each of its values stands, and what its YAML did wrong."""

    file: str
    text: str
    data: Any
    places: Mapping[Keys, int | str]  # a line of the file, or the option that set the value
    problems: tuple[Problem, ...] = ()

    def line_of(self, keys: Keys) -> int:
        """The line of a value, or of the nearest that encloses it; 0 for one set on the command line."""
        place = self._place(keys)
        return place if isinstance(place, int) else 0

    def error(self, problems: Iterable[Problem]) -> UserError:
        """All problems in the order of the file, each once; those of the command line last."""
        found: dict[tuple[float, str], None] = {}
        for problem in problems:
            place = self._place(problem.keys)
            path = dotted(problem.keys if problem.shown is None else problem.shown)
            if place in (f"--set {path}", f"--set {dotted(problem.keys)}", f"--{path.rpartition('.')[2]}"):
                path = ""
            order, start = (math.inf, place) if isinstance(place, str) else (place, f"{self.file}:{place}")
            found[order, f"{start}: {path + ': ' if path else ''}{problem.text}"] = None
        return UserError(*(text for _, text in sorted(found, key=lambda entry: entry[0])))

    def with_value(self, keys: Keys, value: Any, place: str) -> "Located":
        """The same data with one value (or subtree) replaced or added, and `place` as where it stands.

        A key may be new, and so may the mappings on the way; raises ValueError where the way is blocked.
        """
        places = {path: old for path, old in self.places.items() if path[: len(keys)] != keys}
        return replace(self, data=_put(self.data, keys, value, ()), places=places | {keys: place})

    def _place(self, keys: Keys) -> int | str:
        while keys not in self.places and keys:
            keys = keys[:-1]
        return self.places.get(keys, 1)


def load_located(file: str | Path) -> Located:
    """Reads a YAML file that holds one mapping; raises UserError where there is none to read."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{file}: cannot be read: {reason}") from None
    reading = read_yaml(text, str(file))
    if reading.data is None and not reading.problems:
        raise UserError(f"{file}: is empty; write a mapping, such as 'recipe: {{...}}'")
    if not isinstance(reading.data, dict):
        raise UserError(f"{file}:{reading.lines[()]}: must be a mapping of keys to values at the top")
    return Located(str(file), text, reading.data, reading.lines, reading.problems)


def parse_value(text: str, place: str) -> Any:
    """A YAML value written on the command line."""
    reading = read_yaml(text, place)
    if reading.problems:
        raise UserError(*(f"{place}: {problem.text}" for problem in reading.problems))
    return reading.data


def _put(data: Any, keys: Keys, value: Any, above: Keys) -> Any:
    if not keys:
        return value
    key, here = keys[0], dotted(above)
    if isinstance(data, list):
        if not isinstance(key, int) or key >= len(data):
            raise ValueError(f"{here} is a list of {len(data)}: its items are 0 to {len(data) - 1}, got '{key}'")
        return [_put(item, keys[1:], value, (*above, key)) if i == key else item for i, item in enumerate(data)]
    if data is None and above:
        data = {}
    if not isinstance(data, dict):
        raise ValueError(f"{here} is {shown_value(data)}, which has nothing inside")
    name = str(key)
    return {**data, name: _put(data.get(name), keys[1:], value, (*above, name))}
