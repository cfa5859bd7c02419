"""One search space as written, `{uniform: [a, b]}` in place of a value, and the Parameter that it means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdtrain.config.problems import Keys, shown_value, unquoted

Label = str | int | float | bool | None
Values = dict[str, Label]
WHOLE = ("int", "logint")
RANGES = ("uniform", "loguniform", *WHOLE)
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
        return self.kind in WHOLE

    @property
    def is_log(self) -> bool:
        return self.kind in ("loguniform", "logint")

    @property
    def ends(self) -> tuple[Label, ...]:
        """The values that together touch all that is written: every option, or both ends."""
        return self.labels if self.kind == "choice" else (self.low, self.high)

    @property
    def shown(self) -> str:
        """In a sentence: `uniform [0.0, 1.0]`, or the labels of a choice."""
        if self.kind == "choice":
            return ", ".join(unquoted(label) for label in self.labels)
        return f"{self.kind} [{self.low!r}, {self.high!r}]"

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
        return {
            "name": self.name,
            "kind": self.kind,
            "low": None if choice else self.low,
            "high": None if choice else self.high,
            "choices": list(self.labels) if choice else None,
            "conditions": dict(self.conditions),
        }


@dataclass(frozen=True)
class At:
    """Where a walk stands: in the file, in the concrete recipe, by name, and under which choices."""

    source: Keys = ()
    path: Keys = ()
    name: str = ""
    conditions: Mapping[str, Label] = field(default_factory=dict)

    def below(self, key: str | int) -> "At":
        name = f"{self.name}.{key}" if self.name else str(key)
        return replace(self, source=(*self.source, key), path=(*self.path, key), name=name)

    def parameter(self, node: Any) -> Parameter:
        """What the space that stands here means."""
        kind, written = next(iter(node.items()))
        parameter = Parameter(self.name, self.path, self.source, kind, conditions=self.conditions)
        if kind == "choice":
            return replace(parameter, labels=_labels(written))
        low, high = written if parameter.is_int else (float(end) for end in written)
        return replace(parameter, low=low, high=high)

    def chosen(self, node: Any, parameter: Parameter, index: int) -> "tuple[Any, At]":
        """An option of the choice that stands here, and where it stands."""
        label = parameter.labels[index]
        at = replace(self, source=(*self.source, "choice", index), conditions={**self.conditions, self.name: label})
        return node["choice"][index], replace(at, name=f"{self.name}[{unquoted(label)}]")


TOP = At()


def space_word(node: Any) -> str | None:
    """Which kind of space a value is; None for an ordinary value."""
    word = next(iter(node)) if isinstance(node, dict) and len(node) == 1 else None
    return word if word in WORDS else None


def is_number(value: object, whole: bool = False) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def same(a: object, b: object) -> bool:
    """Equal as YAML values: 1 is 1.0 but not true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _labels(options: Sequence[Any]) -> tuple[Label, ...]:
    labels: list[Label] = []
    for option in options:
        label = wanted = _label(option)
        count = 1
        while label in labels:
            count += 1
            label = f"{unquoted(wanted)} ({count})"
        labels.append(label)
    return tuple(labels)


def _label(option: Any) -> Label:
    """Its `name`, its `model`, or the value itself; of another mapping its keys and plain values.

    No label is None: that is a parameter which has no value.
    """
    if option is None:
        return "null"
    if isinstance(option, list):
        return shown_value(option)
    if not isinstance(option, dict):
        return option  # type: ignore[no-any-return]
    if word := space_word(option):
        return word
    for key in ("name", "model"):
        if isinstance(option.get(key), str):
            return str(option[key])
    return ", ".join(
        key if isinstance(value, dict | list) else f"{key}: {unquoted(value)}" for key, value in option.items()
    )
