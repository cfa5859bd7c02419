"""SearchSpace: `{uniform: [a, b]}`, `loguniform`, `int`, `logint` or `{choice: [...]}` in place of a value.

An option of a choice may hold spaces itself: its parameters exist only while that option is chosen.
A tree is the plain data of a recipe with spaces in it; values are {parameter name: number, or label of
the chosen option}.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from kdtrain.config.located import Keys, Problem, dotted, shown_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Label = str | int | float | bool | None
Values = dict[str, Label]
RANGES = ("uniform", "loguniform", "int", "logint")
WORDS = (*RANGES, "choice")


@dataclass(frozen=True)
class Parameter:
    """One thing that is searched.

    Its name is its path in the recipe, with the chosen label in brackets after each choice on the way:
    `method[kd].temperature`. It exists only where every choice in `conditions` has the label given there.
    """

    name: str
    path: Keys
    source: Keys  # where the space is written: ("method", "choice", 0, "temperature")
    kind: str
    low: float = math.nan  # of a range
    high: float = math.nan
    labels: tuple[Label, ...] = ()  # of a choice
    conditions: Mapping[str, Label] = field(default_factory=dict)

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "logint")

    @property
    def is_log(self) -> bool:
        return self.kind in ("loguniform", "logint")

    @property
    def ends(self) -> tuple[Label, ...]:
        """The values that together touch all that is written: every option, or both ends."""
        return self.labels if self.kind == "choice" else (self.low, self.high)

    def spread(self, points: int | None) -> tuple[Label, ...]:
        """Every option, or so many values from end to end, evenly on its scale; no whole one twice."""
        if self.kind == "choice":
            return self.labels
        if points is None or points < 2:
            raise ValueError(f"a grid over {self.name} needs at least 2 points, got {points}")
        shares = [i / (points - 1) for i in range(1, points - 1)]
        if self.is_log:
            inner = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            inner = [self.low + (self.high - self.low) * share for share in shares]
        values = [self.low, *inner, self.high]
        return tuple(sorted({round(value) for value in values})) if self.is_int else tuple(values)

    def holds(self, value: object) -> bool:
        if self.kind == "choice":
            return any(same(value, label) for label in self.labels)
        return is_number(value, self.is_int) and self.low <= value <= self.high  # type: ignore[operator]

    def as_json(self) -> dict[str, Any]:
        """As study.json keeps it."""
        choice = self.kind == "choice"
        ends = {"low": None, "high": None} if choice else {"low": self.low, "high": self.high}
        labels = list(self.labels) if choice else None
        return {
            "name": self.name,
            "kind": self.kind,
            **ends,
            "choices": labels,
            "conditions": dict(self.conditions),
        }


@dataclass(frozen=True)
class Resolved:
    """A tree without spaces, and for each of its values where it was written: {path: path in the file}."""

    tree: Any
    sources: dict[Keys, Keys]


class Trial(Protocol):
    """What suggest() asks of an optuna.Trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Label]) -> Label: ...


def parameters(tree: Any) -> list[Parameter]:
    """Everything that is searched, in the order of the file, conditional parameters after their choice."""
    return list(_parameters(tree, _At()))


def resolve(tree: Any, values: Mapping[str, Label]) -> Resolved:
    """The tree with each space replaced by its value; ValueError unless `values` are just the active ones."""
    used = set()

    def decide(parameter: Parameter) -> Label:
        if parameter.name not in values:
            raise ValueError(f"no value for {parameter.name}")
        if not parameter.holds(values[parameter.name]):
            raise ValueError(f"{parameter.name} cannot be {values[parameter.name]!r}: {parameter}")
        used.add(parameter.name)
        return values[parameter.name]

    resolved = walk(tree, decide)
    if unused := set(values) - used:
        raise ValueError(f"nothing in the tree takes a value for {', '.join(sorted(unused))}")
    return resolved


def suggest(trial: Trial, tree: Any) -> Values:
    """Values drawn by an Optuna trial, define-by-run: a parameter is drawn only where it exists."""
    values: Values = {}

    def draw(parameter: Parameter) -> Label:
        name, low, high = parameter.name, parameter.low, parameter.high
        if parameter.kind == "choice":
            return trial.suggest_categorical(name, parameter.labels)
        if parameter.is_int:
            return trial.suggest_int(name, int(low), int(high), log=parameter.is_log)
        return trial.suggest_float(name, low, high, log=parameter.is_log)

    def decide(parameter: Parameter) -> Label:
        values[parameter.name] = draw(parameter)
        return values[parameter.name]

    walk(tree, decide)
    return values


def distribution(parameter: Parameter) -> "BaseDistribution":
    """What suggest() draws from, as Optuna writes it: to rebuild a trial from its values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution(parameter.labels)
    if parameter.is_int:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.is_log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.is_log)


def distributions(tree: Any, values: Mapping[str, Label]) -> "dict[str, BaseDistribution]":
    """The distribution of each of `values`."""
    return {parameter.name: distribution(parameter) for parameter in parameters(tree) if parameter.name in values}


def probe_points(tree: Any) -> list[Values]:
    """Few values that touch everything written: each option and each end once, all else first or lowest."""
    points: list[Values] = []

    def probe(chosen: Mapping[str, Label]) -> None:
        values: Values = {}

        def decide(parameter: Parameter) -> Label:
            values[parameter.name] = chosen.get(parameter.name, parameter.ends[0])
            return values[parameter.name]

        walk(tree, decide)
        if values not in points:
            points.append(values)

    probe({})
    for parameter in parameters(tree):
        for end in parameter.ends:
            probe({**parameter.conditions, parameter.name: end})
    return points


def combinations(tree: Any, subtrees: Sequence[str]) -> list[Values]:
    """Every way to choose below the given top-level keys; all else first or lowest."""
    return _product(tree, lambda p: p.ends if p.kind == "choice" and p.path[0] in subtrees else p.ends[:1])


def grid(tree: Any, points: int | None) -> list[Values]:
    """Every option with every one of so many values of each range (None: no range), in the file's order."""
    return _product(tree, lambda parameter: parameter.spread(points))


def grid_size(tree: Any, points: int | None) -> int:
    """len(grid(tree, points)), counted without building it."""

    def size(node: Any, at: _At) -> int:
        word = space_word(node)
        if word is None:
            return math.prod(size(child, at.below(key)) for key, child in _items(node))
        parameter = at.parameter(node)
        if word != "choice":
            return len(parameter.spread(points))
        return sum(size(*at.chosen(node, parameter, i)) for i in range(len(parameter.labels)))

    return size(tree, _At())


def walk(tree: Any, decide: Callable[[Parameter], Label]) -> Resolved:
    """The tree with every space replaced by what `decide` answers, asked in the order of the file."""
    sources: dict[Keys, Keys] = {}

    def visit(node: Any, at: _At) -> Any:
        sources[at.path] = at.source
        word = space_word(node)
        if word is None:
            if isinstance(node, dict):
                return {key: visit(child, at.below(key)) for key, child in node.items()}
            return [visit(child, at.below(i)) for i, child in enumerate(node)] if isinstance(node, list) else node
        parameter = at.parameter(node)
        decided = decide(parameter)
        if word != "choice":
            return decided
        index = next(i for i, label in enumerate(parameter.labels) if same(label, decided))
        return visit(*at.chosen(node, parameter, index))

    return Resolved(visit(tree, _At()), sources)


def space_word(node: Any) -> str | None:
    """Which kind of space a value is; None for an ordinary value."""
    if isinstance(node, dict) and len(node) == 1:
        word = next(iter(node))
        return word if word in WORDS else None
    return None


def checked(tree: Any) -> tuple[Any, list[Problem]]:
    """The tree with broken spaces replaced by something harmless, and what is wrong with them."""
    problems: list[Problem] = []

    def visit(node: Any, keys: Keys, path: Keys) -> Any:
        if isinstance(node, list):
            return [visit(child, (*keys, i), (*path, i)) for i, child in enumerate(node)]
        if not isinstance(node, dict):
            return node
        found = [*_space_problems(node)]
        problems.extend(Problem((*keys, *below), text, path) for below, text in found)
        if any(not below for below, _ in found):
            return _first_number(next(iter(node.values())))
        if space_word(node) == "choice":
            return {"choice": [visit(option, (*keys, "choice", i), path) for i, option in enumerate(node["choice"])]}
        return {key: visit(child, (*keys, key), (*path, key)) for key, child in node.items()}

    return visit(tree, (), ()), problems


def match(tree: Any, point: Any) -> tuple[Values, list[Problem]]:
    """The values at which the tree equals a published point, and what is wrong with the point.

    A point gives what is searched and may repeat the rest. At a choice it picks the option that it equals,
    or whose `name` or `model` it gives. A `balance` may be spelt in another way than the space's.
    """
    return _match(tree, point, _At())


def is_number(value: object, whole: bool = False) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def same(a: object, b: object) -> bool:
    """Equal as YAML values: 1 is 1.0 but not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


@dataclass(frozen=True)
class _At:
    """Where a walk stands: in the file, in the concrete recipe, by name, and under which choices."""

    source: Keys = ()
    path: Keys = ()
    name: str = ""
    conditions: Mapping[str, Label] = field(default_factory=dict)

    def below(self, key: str | int) -> "_At":
        name = f"{self.name}.{key}" if self.name else str(key)
        return replace(self, source=(*self.source, key), path=(*self.path, key), name=name)

    def chosen(self, node: Any, parameter: Parameter, index: int) -> "tuple[Any, _At]":
        """An option of the choice that stands here, and where it stands."""
        label = parameter.labels[index]
        at = replace(self, source=(*self.source, "choice", index), conditions={**self.conditions, self.name: label})
        return node["choice"][index], replace(at, name=f"{self.name}[{_text(label)}]")

    def parameter(self, node: Any) -> Parameter:
        kind, written = next(iter(node.items()))
        parameter = Parameter(self.name, self.path, self.source, kind, conditions=self.conditions)
        if kind == "choice":
            return replace(parameter, labels=_labels(written))
        low, high = written if parameter.is_int else (float(end) for end in written)
        return replace(parameter, low=low, high=high)


class _Undecided(Exception):
    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter


def _product(tree: Any, options: Callable[[Parameter], Sequence[Label]]) -> list[Values]:
    found: list[Values] = []
    pending: list[Values] = [{}]
    while pending:
        values = pending.pop()

        def decide(parameter: Parameter, values: Values = values) -> Label:
            if parameter.name not in values:
                raise _Undecided(parameter)
            return values[parameter.name]

        try:
            walk(tree, decide)
        except _Undecided as undecided:
            name = undecided.parameter.name
            pending += [{**values, name: option} for option in reversed(options(undecided.parameter))]
        else:
            found.append(values)
    return found


def _parameters(node: Any, at: _At) -> Iterator[Parameter]:
    word = space_word(node)
    if word is None:
        for key, child in _items(node):
            yield from _parameters(child, at.below(key))
        return
    parameter = at.parameter(node)
    yield parameter
    for i in range(len(parameter.labels)):
        yield from _parameters(*at.chosen(node, parameter, i))


def _items(node: Any) -> Sequence[tuple[str | int, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _labels(options: Sequence[Any]) -> tuple[Label, ...]:
    labels: list[Label] = []
    for option in options:
        label = wanted = _label(option)
        count = 1
        while any(label == other for other in labels):
            count += 1
            label = f"{_text(wanted)} ({count})"
        labels.append(label)
    return tuple(labels)


def _label(option: Any) -> Label:
    """Its `name`, its `model`, or the value itself; of another mapping its keys and plain values."""
    if isinstance(option, list):
        return shown_value(option)
    if not isinstance(option, dict):
        return option  # type: ignore[no-any-return]
    if space_word(option):
        return space_word(option)
    for key in ("name", "model"):
        if isinstance(option.get(key), str):
            return str(option[key])
    return ", ".join(
        key if isinstance(value, dict | list) else f"{key}: {_text(value)}" for key, value in option.items()
    )


def _text(label: Any) -> str:
    return label if isinstance(label, str) else shown_value(label)


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
    elif words:
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
    whole = kind in ("int", "logint")
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


_ABSENT: Any = object()


def _match(node: Any, given: Any, at: _At) -> tuple[Values, list[Problem]]:
    word = space_word(node)
    if word == "choice":
        return _match_choice(node, given, at)
    if word is not None:
        return _match_range(at.parameter(node), given)
    if isinstance(node, dict) and (given is _ABSENT or isinstance(given, dict)):
        return _match_mapping(node, given, at)
    if isinstance(node, list) and (given is _ABSENT or (isinstance(given, list) and len(given) == len(node))):
        pairs = [(child, _ABSENT if given is _ABSENT else given[i], at.below(i)) for i, child in enumerate(node)]
        return _gather(_match(*pair) for pair in pairs)
    if given is _ABSENT or same(node, given) or (is_number(node) and is_number(given) and math.isclose(node, given)):
        return {}, []
    fixed = shown_value(node) if not isinstance(node, dict) else "a mapping"
    return {}, [Problem(at.path, f"is fixed to {fixed} in the recipe, got {shown_value(given)}")]


def _match_range(parameter: Parameter, given: Any) -> tuple[Values, list[Problem]]:
    searched = f"{parameter.kind} [{parameter.low!r}, {parameter.high!r}]"
    if given is _ABSENT:
        return {}, [Problem(parameter.path, f"is searched ({searched}), so a published point must give it")]
    if not is_number(given, parameter.is_int):
        wanted = "a whole number" if parameter.is_int else "a number"
        return {}, [Problem(parameter.path, f"must be {wanted}, got {shown_value(given)}")]
    for end in (parameter.low, parameter.high):
        given = end if math.isclose(given, end) else given  # a respelt balance is off by rounding
    if not parameter.holds(given):
        return {}, [Problem(parameter.path, f"lies outside what is searched, {searched}, got {shown_value(given)}")]
    return {parameter.name: given if parameter.is_int else float(given)}, []


def _match_choice(node: Any, given: Any, at: _At) -> tuple[Values, list[Problem]]:
    parameter = at.parameter(node)
    labels = ", ".join(_text(label) for label in parameter.labels)
    if given is _ABSENT:
        return {}, [Problem(at.path, f"is searched ({labels}), so a published point must give it")]
    meant = [i for i, option in enumerate(node["choice"]) if _meant(option, given)]
    refused: list[list[Problem]] = []
    for i in sorted(meant, key=lambda i: _keys(node["choice"][i]) != _keys(given)):
        values, problems = _match(*_swapped(at.chosen(node, parameter, i), given))
        if not problems:
            return {parameter.name: parameter.labels[i], **values}, []
        refused.append(problems)
    if len(refused) == 1 and isinstance(given, dict):
        return {}, refused[0]
    return {}, [Problem(at.path, f"is none of the options ({labels}), got {shown_value(given)}")]


def _swapped(option: tuple[Any, _At], given: Any) -> tuple[Any, Any, _At]:
    return option[0], given, option[1]


def _meant(option: Any, given: Any) -> bool:
    """Whether a point can mean this option: they do not disagree about `name` or `model`."""
    if not isinstance(option, dict) or space_word(option):
        return True
    if not isinstance(given, dict):
        return False
    return all(
        same(given.get(key, _ABSENT), option[key]) for key in ("name", "model") if isinstance(option.get(key), str)
    )


def _keys(value: Any) -> object:
    return set(value) if isinstance(value, dict) else None


def _match_mapping(node: dict[str, Any], given: Any, at: _At) -> tuple[Values, list[Problem]]:
    written = {} if given is _ABSENT else given
    if at.path[-1:] == ("balance",) and written and set(written) != set(node) and _is_spelling(node):
        return _match_balance(node, written, at)
    parts = [_match(child, written.get(key, _ABSENT), at.below(key)) for key, child in node.items()]
    for key in (key for key in written if key not in node):
        near = difflib.get_close_matches(key, node, n=1)
        hint = f"nearest: {near[0]}" if near else f"written there: {', '.join(node)}"
        text = f"is not written in the recipe, so a published point cannot set it; {hint}"
        parts.append(({}, [Problem((*at.path, key), text)]))
    return _gather(parts)


def _is_spelling(node: dict[str, Any]) -> bool:
    from kdtrain.methods.balance import SPELLINGS

    return len(node) == 1 and next(iter(node)) in SPELLINGS


def _match_balance(node: dict[str, Any], given: dict[str, Any], at: _At) -> tuple[Values, list[Problem]]:
    from kdtrain.methods.balance import SPELLINGS, Balance

    wanted = next(iter(node))
    try:
        respelt = Balance.model_validate(given).respell(wanted)
    except ValidationError:
        text = f"must be one of {', '.join(SPELLINGS)} with a number, got {shown_value(given)}"
        return {}, [Problem(at.path, text)]
    except ValueError as error:
        return {}, [Problem(at.path, str(error))]
    values, problems = _match(node[wanted], respelt, at.below(wanted))
    note = f" ({shown_value(given)} said as {wanted})"
    return values, [Problem(at.path, f"{dotted(p.keys[len(at.path) :])} {p.text}{note}") for p in problems]


def _gather(parts: Any) -> tuple[Values, list[Problem]]:
    values: Values = {}
    problems: list[Problem] = []
    for found, wrong in parts:
        values |= found
        problems += wrong
    return values, problems
