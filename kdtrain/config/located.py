"""Plain data with the place of every value, so that an error message can name it; overrides such as `epochs=3`."""

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

from kdtrain.config.parameter import space_kind
from kdtrain.config.problems import KeyPath, Problem, dotted, format_value
from kdtrain.config.yaml_reader import MAX_DEPTH, MOST_BITS, Reading, dump_yaml, read_yaml
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

MOST_BYTES = 1 << 20
"""Size of a file. The largest shipped sweep has 5,000 bytes."""


@dataclass(frozen=True)
class Located:
    """Plain data, the place of each of its values, and the mistakes found while it was read."""

    file: str  # the name of the data if it comes from Python
    text: str  # data from Python as YAML
    data: dict[str, Any]
    places: Mapping[KeyPath, int | str]  # line in the file or position in the Python data, or the option that set it
    problems: tuple[Problem, ...] = ()
    has_lines: bool = True

    def error(self, problems: Iterable[Problem]) -> UserError:
        """Return the error with every problem once, in the order of the file; those of the command line come last."""
        found: dict[tuple[float, str], None] = {}
        for problem in problems:
            place = self._place(problem.path)
            shown = dotted(problem.path if problem.shown_path is None else problem.shown_path)
            if place in (f"--set {shown}", f"--set {dotted(problem.path)}", f"--{shown.rpartition('.')[2]}"):
                shown = ""
            order, start = (math.inf, place) if isinstance(place, str) else (place, self._start(place))
            found[order, f"{start}: {shown + ': ' if shown else ''}{problem.text}"] = None
        return UserError(*(text for _, text in sorted(found, key=lambda entry: entry[0])))

    def with_value(self, path: KeyPath, value: Any, place: str) -> "Located":
        """Return the same data with one value or subtree replaced or added; ValueError if its path cannot exist."""
        places = {other: old for other, old in self.places.items() if other[: len(path)] != path}
        return replace(self, data=_put(self.data, path, value, ()), places=places | {path: place})

    def _place(self, path: KeyPath) -> int | str:
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, 1)

    def _start(self, line: int) -> str:
        return f"{self.file}:{line}" if self.has_lines else self.file


def load_located(file: str | Path) -> Located:
    """Return the mapping in a YAML file, with its line numbers."""
    if not isinstance(file, str | PurePath):
        raise UserError(f"file: must be the path of a YAML file, got {format_value(file)}")
    try:
        with user_path(file, "file").open("rb") as opened:
            written = opened.read(MOST_BYTES + 1)
        text = io.TextIOWrapper(io.BytesIO(written), encoding="utf-8-sig").read()
    except ValueError:
        raise UserError(f"{file}: cannot be read: not UTF-8 text") from None
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if len(written) > MOST_BYTES:
        raise UserError(f"{file}: is larger than {MOST_BYTES:,} bytes, the most of a sweep or recipe")
    reading = read_yaml(text, str(file))
    if reading.data is None and not reading.problems:
        raise UserError(f"{file}:1: is empty; write a mapping, such as 'recipe: {{...}}'")
    if not isinstance(reading.data, dict):
        raise UserError(f"{file}:{reading.lines[()]}: must be a mapping of keys to values at the top level")
    return Located(str(file), text, reading.data, reading.lines, reading.problems)


def locate(data: object, name: str) -> Located:
    """Return a mapping from Python as if it came from a file; messages begin with `name` in place of file and line."""
    reading = _read_python(data, name)
    if not isinstance(reading.data, dict):
        raise UserError(f"{name}: must be a mapping of keys to values at the top level, got {type(data).__name__}")
    return Located(name, dump_yaml(reading.data), reading.data, reading.lines, reading.problems, has_lines=False)


def _read_python(data: object, name: str) -> Reading:
    """Return Python data as the plain data that a file would give; the `lines` number the values in their order."""
    order: dict[KeyPath, int] = {}
    problems: list[Problem] = []

    def report(path: KeyPath, text: str) -> None:
        order.setdefault(path, len(order) + 1)
        problems.append(Problem(path, text))

    def read(value: Any, path: KeyPath, enclosing: frozenset[int]) -> Any:
        order.setdefault(path, len(order) + 1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)  # a subclass becomes plain text
        if isinstance(value, Integral):
            bits = int(value).bit_length()
            text = f"must be a number of at most {MOST_BITS} bits, got one of {bits}"
            return int(value) if bits <= MOST_BITS else report(path, text)
        if isinstance(value, Real):
            if not math.isfinite(value):
                return report(path, f"must be a finite number, got {float(value)}")
            return float(value)
        if isinstance(value, PurePath):
            return str(value)
        if id(value) in enclosing:
            return report(path, "must not contain itself")
        enclosing |= {id(value)}
        if len(enclosing) > MAX_DEPTH:
            raise UserError(f"{name}: is nested too deeply to be read: more than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    report((*path, str(key)), f"a key must be text, got {format_value(key)}")
            texts = {str.__str__(key): child for key, child in value.items() if isinstance(key, str)}
            return {key: read(child, (*path, key), enclosing) for key, child in texts.items()}
        if isinstance(value, list | tuple):
            return [read(item, (*path, i), enclosing) for i, item in enumerate(value)]
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return report(path, f"must be text, a number, true, false, null, a list or a mapping, got {kind}")

    return Reading(read(data, (), frozenset()), order, tuple(problems))


def parse_value(text: str, place: str) -> Any:
    """Return the plain data of a YAML value from the command line; error messages begin with `place`."""
    reading = read_yaml(text, place)
    if reading.problems:
        raise UserError(*(f"{place}: {problem.text}" for problem in reading.problems))
    return reading.data


def apply_overrides(
    located: Located, overrides: Sequence[str], parts: Collection[str], example: str
) -> tuple[Located, list[Problem]]:
    """Return the data with every valid override `path=value` applied, and the problems of the others."""
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise UserError(f"overrides: must be a list, such as ['{example}'], got {format_value(overrides)}")
    if wrong := [override for override in overrides if not isinstance(override, str)]:
        raise UserError(f"overrides: must be texts, such as '{example}', got {format_value(wrong[0])}")
    problems = []
    for override in overrides:
        key_text, equals, text = override.partition("=")
        place = _option(key_text)
        try:
            if not equals or not all(key_text.split(".")):
                raise ValueError(f"must be written as {example}")
            path = _override_path(located.data, key_text, parts)
            located = located.with_value(path, parse_value(text, place), place)
        except ValueError as error:
            located = replace(located, places={**located.places, (place,): place})
            problems.append(Problem((place,), str(error), ()))
    return located, problems


def _option(key_text: str) -> str:
    """Return the place of an override in messages."""
    return f"--set {dotted(key_text.split('.'))}"


def _override_path(data: dict[str, Any], key_text: str, parts: Collection[str]) -> KeyPath:
    path = tuple(int(key) if key.isdecimal() and len(key) < 10 else key for key in key_text.split("."))
    if len(path) > MAX_DEPTH:
        raise ValueError(f"is nested too deeply: more than {MAX_DEPTH} levels")
    if path[0] not in parts:
        owners = [part for part, value in data.items() if isinstance(value, dict) and path[0] in value]
        hint = f"; did you mean {owners[0]}.{dotted(path)}?" if owners else ""
        raise ValueError(f"must begin with {', '.join(f'{part}.' for part in parts)}{hint}")
    node: Any = data
    for i, key in enumerate(path):
        kind = space_kind(node) if i > 1 else None
        if kind and key != kind:
            here = dotted(path[:i])
            hint = f"; to change one option write {here}.choice.0.{dotted(path[i:])}" if kind == "choice" else ""
            raise ValueError(f"{here} is a search space, {format_value(node)}: replace it as a whole{hint}")
        if isinstance(node, dict):
            node = node.get(str(key))
        else:
            node = node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None
    return path


def _put(data: Any, path: KeyPath, value: Any, above: KeyPath) -> Any:
    if not path:
        return value
    key, here = path[0], dotted(above)
    if isinstance(data, list):
        if not isinstance(key, int) or key >= len(data):
            raise ValueError(
                f"{here} is a list of {len(data)}: its items are 0 to {len(data) - 1}, got {format_value(str(key))}"
            )
        return [_put(item, path[1:], value, (*above, key)) if i == key else item for i, item in enumerate(data)]
    if data is None and above:
        data = {}
    if not isinstance(data, dict):
        raise ValueError(f"{here} is {format_value(data)}, which has no keys")
    name = str(key)
    return {**data, name: _put(data.get(name), path[1:], value, (*above, name))}
