"""YAML -> plain data that knows its lines, and what is wrong with it in sentences with file and line."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kdtrain.errors import UserError

Keys = tuple[str | int, ...]
"""Where a value stands: ("recipe", "method", "choice", 0, "temperature")."""

M = TypeVar("M", bound=BaseModel)
MAX_VALUES = 100_000  # aliases of aliases would fill the memory


@dataclass(frozen=True)
class Problem:
    """One mistake. `keys` finds its line; `shown` is the path as the user thinks of it, if another."""

    keys: Keys
    text: str
    shown: Keys | None = None

    def below(self, parent: Keys) -> "Problem":
        return replace(self, keys=parent + self.keys, shown=parent + (self.keys if self.shown is None else self.shown))


@dataclass(frozen=True)
class Located:
    """A file as plain data, where each of its values stands, and what its YAML did wrong."""

    file: str
    text: str
    data: Any
    places: dict[Keys, int | str]  # a line of the file, or the option that set the value
    problems: tuple[Problem, ...] = field(default=())

    def line_of(self, keys: Keys) -> int:
        """The line of a value, or of the nearest that encloses it; 0 for one set on the command line."""
        place = self._place(keys)
        return place if isinstance(place, int) else 0

    def place_of(self, keys: Keys) -> str:
        """`sweeps/x.yaml:12`, or `--set recipe.epochs`."""
        place = self._place(keys)
        return place if isinstance(place, str) else f"{self.file}:{place}"

    def error(self, problems: Iterable[Problem]) -> UserError:
        """All problems in the order of the file, each once; those of the command line last."""
        found: dict[tuple[float, str], None] = {}
        for problem in problems:
            place = self._place(problem.keys)
            path = dotted(problem.keys if problem.shown is None else problem.shown)
            if place in (f"--set {path}", f"--set {dotted(problem.keys)}", f"--{path.rpartition('.')[2]}"):
                path = ""
            order = place if isinstance(place, int) else math.inf
            found[order, f"{self.place_of(problem.keys)}: {path + ': ' if path else ''}{problem.text}"] = None
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
    node = _compose(text, str(file))
    if node is None or node.tag == "tag:yaml.org,2002:null":
        raise UserError(f"{file}: is empty; write a mapping, such as 'recipe: {{...}}'")
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}:{_line(node)}: must be a mapping of keys to values at the top")
    reader = _Reader(str(file))
    data = reader.read(node, (), frozenset())
    return Located(str(file), text, data, reader.places, tuple(reader.problems))


def parse_value(text: str, place: str) -> Any:
    """A YAML value written on the command line."""
    node = _compose(text, place)
    if node is None:
        return None
    reader = _Reader(place)
    data = reader.read(node, (), frozenset())
    if reader.problems:
        raise UserError(*(f"{place}: {problem.text}" for problem in reader.problems))
    return data


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that load_located reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def validate(model: type[M], data: Any, noun: str) -> tuple[M | None, list[Problem]]:
    """Plain data as a model, or all that is wrong with it.

    Keys are those of `data`, without pydantic's union tags. A sentence calls the data as a whole `noun`.
    """
    try:
        return model.model_validate_json(json.dumps(data)), []
    except ValidationError as error:
        rules: dict[Keys, list[str]] = {}
        for details in error.errors(include_url=False):
            keys, text = _sentence(model, data, dict(details), noun)
            rules.setdefault(keys, []).append(text)
    return None, [Problem(keys, _joined(texts)) for keys, texts in rules.items()]


def choices(names: Iterable[str], wrong: str = "") -> str:
    """The end of a sentence: `choices: none, kd; nearest: kd`."""
    known = list(names)
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"choices: {', '.join(known)}" + (f"; nearest: {near[0]}" if near else "")


def dotted(keys: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in keys)


def shown_value(value: Any) -> str:
    """A value in a sentence: as one would write it in YAML, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(_plain(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else shown_value(value)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema: 1e-4 is a number; on, no and 12:30 are text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes what _Loader would read as something else than text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _compose(text: str, place: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
        return node
    except yaml.reader.ReaderError as error:
        raise UserError(f"{place}: is not text: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{place}:{line}: is not YAML: {_yaml_sentence(error)}") from None
    except RecursionError:
        raise UserError(f"{place}: is nested too deeply to be read") from None
    finally:
        if loader is not None:
            loader.dispose()


def _yaml_sentence(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be parsed"
    if "'\\t'" in problem:
        return "a tab cannot indent; use spaces"
    if isinstance(error, yaml.composer.ComposerError) and "another document" in problem:
        return "a file holds one document; remove the '---' in the middle"
    return f"{problem} ({error.context})" if error.context else problem


class _Reader:
    """Turns nodes into dicts, lists and scalars, noting the line of each and collecting what is wrong."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.places: dict[Keys, int | str] = {}
        self.problems: list[Problem] = []
        self.values = 0

    def read(self, node: yaml.Node, keys: Keys, enclosing: frozenset[int]) -> Any:
        self.places.setdefault(keys, _line(node))
        self.values += 1
        if self.values > MAX_VALUES:
            raise UserError(
                f"{self.place}: holds more than {MAX_VALUES:,} values (aliases counted where they are used)"
            )
        if id(node) in enclosing:
            raise UserError(f"{self.place}:{_line(node)}: {dotted(keys)}: an alias cannot stand inside its own anchor")
        enclosing |= {id(node)}
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, keys, enclosing)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.read(item, (*keys, i), enclosing) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        return self._wrong(keys, f"tag {_tag_text(node)} is not read; write plain YAML")

    def _mapping(self, node: yaml.MappingNode, keys: Keys, enclosing: frozenset[int]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._wrong((*keys, str(key)), f"a key must be text, got {key or 'nothing'}", line)
                continue
            key = key_node.value
            path = (*keys, key)
            if key == "<<":
                self._wrong(path, "merge keys are not read; write the keys out, or alias a whole value", line)
            elif key in mapping:
                self._wrong(path, f"is written twice; first in line {self.places[path]}", line)
            else:
                self.places[path] = line
                mapping[key] = self.read(value_node, path, enclosing)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        text, tag = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
        if tag == "str":
            return text
        if tag == "null":
            return None
        try:
            if tag == "bool":
                return {"true": True, "false": False}[text.lower()]
            if tag == "int":
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            if tag == "float":
                number = float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
                if math.isfinite(number):
                    return number
                return self._wrong(keys, f"must be a finite number, got {text}")
        except (ValueError, KeyError):
            return self._wrong(keys, f"is no {tag}: '{text}'")
        return self._wrong(keys, f"tag {_tag_text(node)} is not read; write plain YAML")

    def _wrong(self, keys: Keys, text: str, line: int | None = None) -> Any:
        own: Keys = keys if line is None else (*keys, len(self.problems))  # a key's second line needs a path of its own
        if line is not None:
            self.places[own] = line
        self.problems.append(Problem(own, text, keys))


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


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _tag_text(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


_LIMITS = ("gt", "ge", "lt", "le")
_RULES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping, {{key: value}}",
    "model_type": "must be a mapping, {{key: value}}",
    "model_attributes_type": "must be a mapping, {{key: value}}",
    "finite_number": "must be a finite number",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
}


def _sentence(model: type[BaseModel], data: Any, details: dict[str, Any], noun: str) -> tuple[Keys, str]:
    """Where in `data`, and what, from one of pydantic's errors."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    keys, node = _in_data(data, details["loc"])
    if kind == "missing":
        return (*keys, details["loc"][-1]), "is missing"
    if kind == "extra_forbidden":
        owner = _model_at(model, data, keys[:-1])
        return keys, _unknown_key(owner, _enclosing(data, keys), keys, noun)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        names = [name for option in _models_at(model, data, keys) for name in _names(option)]
        if kind == "union_tag_not_found":
            return keys, f"needs a name; {choices(names)}"
        tag = str(context["tag"])
        return (*keys, "name"), f"unknown {keys[-1] if keys else 'name'} '{tag}'; {choices(names, tag)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        return keys, f"must be one of {', '.join(allowed)}, got {shown_value(value)}{hint}"
    if kind in ("value_error", "assertion_error"):
        return _relocated(keys, node, str(context.get("error", details["msg"])))
    limits = {key: int(limit) if limit == int(limit) else limit for key, limit in context.items() if key in _LIMITS}
    rule = _RULES[kind].format(**limits) if kind in _RULES else details["msg"][:1].lower() + details["msg"][1:]
    return keys, f"{rule}, got {shown_value(value)}"


def _in_data(data: Any, loc: Sequence[str | int]) -> tuple[Keys, Any]:
    keys: Keys = ()
    for part in loc:
        known = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if known:  # else it names the member of a union, or a missing key
            keys, data = (*keys, part), data[part]
    return keys, data


def _enclosing(data: Any, keys: Keys) -> Any:
    for key in keys[:-1]:
        data = data[key]
    return data


def _relocated(keys: Keys, node: Any, text: str) -> tuple[Keys, str]:
    """A sentence of a whole model that begins with a field of it (`lr_schedule.warmup_epochs must ...`)."""
    first, _, rest = text.partition(" ")
    below: Keys = ()
    for key in first.split("."):
        if not isinstance(node, dict) or key not in node:
            return keys, text
        below, node = (*below, key), node[key]
    return (*keys, *below), rest


def _unknown_key(owner: type[BaseModel] | None, node: Any, keys: Keys, noun: str) -> str:
    key, known = str(keys[-1]), list(owner.model_fields) if owner else []
    name = node.get("name") if owner and "name" in known else None
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"nearest: {near[0]}" if near else f"it has: {', '.join(known) or 'nothing'}"
    return f"{name or (keys[-2] if len(keys) > 1 else noun)} has no '{key}'; {hint}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _models_at(model: type[BaseModel], data: Any, keys: Keys) -> list[type[BaseModel]]:
    """The models that can stand at a path."""
    if not keys:
        return [model]
    owner = _model_at(model, data, keys[:-1])
    key = str(keys[-1])
    return _models(owner.model_fields[key].annotation) if owner and key in owner.model_fields else []


def _model_at(model: type[BaseModel], data: Any, keys: Keys) -> type[BaseModel] | None:
    """The model that a mapping in the data is, by its `name` where there are several."""
    options = _models_at(model, data, keys)
    node = _enclosing(data, (*keys, ""))
    named = [option for option in options if isinstance(node, dict) and node.get("name") in _names(option)]
    return next(iter(named or options), None)


def _names(model: type[BaseModel]) -> list[str]:
    return (
        [str(name) for name in get_args(model.model_fields["name"].annotation)] if "name" in model.model_fields else []
    )


def _joined(texts: list[str]) -> str:
    """What the members of a union want, as one sentence: `must be auto or a whole number, got 'all'`."""
    if len(texts) == 1 or not all(text.startswith("must be ") and ", got " in text for text in texts):
        return "; ".join(dict.fromkeys(texts))
    rules, got = [text.rpartition(", got ")[0] for text in texts], texts[0].rpartition(", got ")[2]
    wanted = " or ".join(dict.fromkeys(rule.removeprefix("must be ").removeprefix("one of ") for rule in rules))
    return f"must be {wanted}, got {got}"
