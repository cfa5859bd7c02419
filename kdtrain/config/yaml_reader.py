"""YAML text to plain data and back: the scalars of YAML 1.2, the line of every value, and all mistakes."""

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from kdtrain.config.problems import MOST_OF_PATH, KeyPath, Problem, dotted, format_value
from kdtrain.errors import UserError, shortened

MAX_VALUES = 10_000  # a few lines of aliases of aliases would otherwise fill the memory
MAX_DEPTH = 100
"""Levels of nesting. Python's own limit would be met somewhere behind the reader."""
TOO_MANY = f"has more than {MAX_VALUES:,} values (an alias counts at every use)"
TOO_DEEP = f"is nested too deeply to be read: more than {MAX_DEPTH} levels"
MOST_BITS, MOST_DIGITS = 1023, 400
"""Size of a whole number: larger ones have no float, and Python does not write those of 4,300 digits."""
CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Reading:
    """Plain data, the line number of each of its values, and the mistakes in its source."""

    data: Any
    lines: dict[KeyPath, int]
    problems: tuple[Problem, ...]


def read_yaml(text: str, place: str) -> Reading:
    """Return the plain data of one YAML document, which messages call `place`; raise UserError if it is not YAML."""
    node = _compose(text, place)
    reader = _Reader(place)
    data = None if node is None else reader.read(node, (), frozenset())
    return Reading(data, reader.lines, tuple(reader.problems))


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `read_yaml` reads back as equal data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def flow_yaml(data: Any) -> str:
    """Return plain data as YAML in one line: `{choice: [1, 2, 4]}`."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=True
    )
    return text.removesuffix("...\n").strip()


class _TooMuch(Exception):
    """A line at which a document has too many values or levels."""

    def __init__(self, text: str, parent: yaml.Node | None) -> None:
        super().__init__(f"{1 if parent is None else _line(parent)}: {text}")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the one in C is ten times faster
    """A SafeLoader with the scalars of YAML 1.2's core schema: 1e-4 is a number; on, no and 12:30 are text.

    The overridden methods are called before and after each value, so that nothing is built beyond the bounds.
    """

    values = depth = 0

    def descend_resolver(self, parent: yaml.Node | None, index: object) -> None:
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise _TooMuch(TOO_DEEP, parent)
        if self.values > 2 * MAX_VALUES:  # keys are values here
            raise _TooMuch(TOO_MANY, parent)

    def ascend_resolver(self) -> None:
        self.depth -= 1


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"{CORE}{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes every text which _Loader would read as another type."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _compose(text: str, place: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
        return node
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise UserError(f"{place}:{line}: is not text: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        is_tab = "".join(text.split("\n")[line : line + 1])[column : column + 1] == "\t"
        raise UserError(f"{place}:{line + 1}: is not YAML: {_yaml_sentence(error, is_tab)}") from None
    except _TooMuch as error:
        raise UserError(f"{place}:{error}") from None
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise UserError(f"{place}: is not UTF-8 text") from None


def _yaml_sentence(error: yaml.MarkedYAMLError, is_tab: bool) -> str:
    problem = shortened(error.problem or "cannot be parsed", MOST_OF_PATH)
    if is_tab or "tab character" in problem:
        return "a tab cannot be used for indentation; use spaces"
    if isinstance(error, yaml.composer.ComposerError) and "another document" in problem:
        return "a file must have one document only; remove the '---' in the middle"
    return f"{problem} ({error.context})" if error.context else problem


class _Reader:
    """A reader that turns YAML nodes into dicts, lists and scalars, and collects their lines and mistakes."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def read(self, node: yaml.Node, path: KeyPath, enclosing: frozenset[int]) -> Any:
        self.lines.setdefault(path, _line(node))
        self.values += 1
        if self.values > MAX_VALUES:
            raise UserError(f"{self.place}:{_line(node)}: {TOO_MANY}")
        if id(node) in enclosing:
            raise UserError(f"{self.place}:{_line(node)}: {dotted(path)}: an alias cannot be inside its own anchor")
        enclosing |= {id(node)}
        if len(enclosing) > MAX_DEPTH:
            raise UserError(f"{self.place}:{_line(node)}: {TOO_DEEP}")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{CORE}map":
            return self._mapping(node, path, enclosing)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{CORE}seq":
            return [self.read(item, (*path, i), enclosing) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        return self._wrong_tag(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, enclosing: frozenset[int]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{CORE}str":
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._report((*path, str(key)), f"a key must be text, got {shortened(key) or 'nothing'}", line)
                continue
            key = key_node.value
            below = (*path, key)
            if key == "<<":
                text = "merge keys are not supported; write the keys out, or use an alias for a whole value"
                self._report(below, text, line)
            elif key in mapping:
                self._report(below, f"is written twice, first in line {self.lines[below]}", line)
            else:
                self.lines[below] = line
                mapping[key] = self.read(value_node, below, enclosing)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, tag = node.value, node.tag.removeprefix(CORE)
        if tag == "str":
            return text
        if tag == "null":
            return None
        try:
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                number = int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) <= MOST_DIGITS else None
                if number is not None and number.bit_length() <= MOST_BITS:
                    return number
                return self._report(path, f"must be a number of at most {MOST_BITS} bits, got {shortened(text)}")
            if tag == "float":
                value = float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
                if math.isfinite(value):
                    return value
                return self._report(path, f"must be a finite number, got {shortened(text)}")
        except (ValueError, KeyError):
            return self._report(path, f"is not a valid {tag}: {format_value(text)}")
        return self._wrong_tag(node, path)

    def _wrong_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = shortened(node.tag.replace(CORE, "!!"))
        self._report(path, f"tag {tag} is not supported; write plain YAML")

    def _report(self, path: KeyPath, text: str, line: int | None = None) -> None:
        own = path if line is None else (*path, len(self.problems))  # `lines` has the first line of a repeated key
        if line is not None:
            self.lines[own] = line
        self.problems.append(Problem(own, text, path))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
