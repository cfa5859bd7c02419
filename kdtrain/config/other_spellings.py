"""Search spaces as other tools write them, turned into kdtrain's spelling for the hint of an error message.

W&B has `{values: [...]}` and `{distribution: ..., min: a, max: b}`, Ray Tune `tune.uniform(a, b)` and
`{grid_search: [...]}`, Optuna `{type: float, low: a, high: b, log: true}`, NNI `{_type: uniform, _value: [a, b]}`, and
Hydra `choice(1, 2)`, `interval(a, b)` and `1,2,4`.
"""

import math
import re
from typing import Any

from kdtrain.config.problems import format_value
from kdtrain.config.yaml_reader import flow_yaml, read_yaml
from kdtrain.errors import UserError

Space = dict[str, list[Any]]
LONGEST_HINT = 200

OPTIONS = ("values", "choices", "grid_search", "categorical", "options", "one_of", "sweep")
LOW, HIGH = ("min", "low", "lower"), ("max", "high", "upper")
KIND = ("distribution", "type", "_type")
KEYS = {*OPTIONS, *LOW, *HIGH, *KIND, "_value", "value", "log", "step", "q", "probabilities", "mu", "sigma"}
"""The keys of other tools' spaces. A mapping that has any other key is none, unless its one key is in KIND_OF."""

CALL = re.compile(r"(?:(?:ray\.)?tune\.|hp\.|optuna\.)?(\w+)\s*\((.*)\)", re.DOTALL)
KIND_OF = {
    **dict.fromkeys(("choice", "categorical", "grid_search", "sample_from", "suggest_categorical"), "choice"),
    **dict.fromkeys(("uniform", "quniform", "q_uniform", "interval", "float", "suggest_float"), "uniform"),
    **dict.fromkeys(("loguniform", "qloguniform", "log_uniform_values", "q_log_uniform_values"), "loguniform"),
    **dict.fromkeys(("log_uniform", "q_log_uniform"), "exponents"),
    **dict.fromkeys(("int", "int_uniform", "suggest_int", "integer"), "int"),
    **dict.fromkeys(("randint", "qrandint", "range"), "below"),  # the upper end is excluded
    **dict.fromkeys(("lograndint", "qlograndint"), "log_below"),
}

WHOLE = {"uniform": "int", "loguniform": "logint"}


def search_hint(value: Any) -> str:
    """Return the end of a sentence about a value that looks like a search space, or an empty text if it does not."""
    if isinstance(value, list) and value:
        return f"; to search over these values write {_shown({'choice': value})}"
    space = _from_text(value) if isinstance(value, str) else None
    return f"; to search write {_shown(space)}" if space else ""


def other_space(node: dict[str, Any]) -> str | None:
    """Return the sentence about a mapping that is another tool's search space, or None if it is none."""
    word = next(iter(node)) if len(node) == 1 else ""
    if word in KIND_OF and isinstance(node[word], list):
        space = _space(KIND_OF[word], node[word])
    elif word == "value":
        return f"must be the value itself, got {_shown(node)}; write {_shown(node[word])}"
    elif (node.keys() <= KEYS and len(node) > 1) or (word in OPTIONS and isinstance(node[word], list)):
        space = _from_mapping(node)
    else:
        return None
    hint = _shown(space) if space else "{uniform: [low, high]}, loguniform, int, logint or {choice: [...]}"
    if space and not node.keys() & {*KIND, *KIND_OF, "step"}:
        for kind, whole in WHOLE.items():
            if kind in space and all(isinstance(end, int) for end in space[kind]):
                hint += f", or {_shown({whole: space[kind]})} for whole numbers"
    return f"is no search space of kdtrain, got {format_value(node)}; write {hint}"


def _shown(written: Any) -> str:
    text = flow_yaml(written)
    return text if len(text) <= LONGEST_HINT else f"{{{next(iter(written))}: [...]}}"


def _from_mapping(node: dict[str, Any]) -> Space | None:
    options = next((node[key] for key in OPTIONS if isinstance(node.get(key), list)), None)
    if options is not None:
        return _space("choice", options)
    low, high = (next((node[key] for key in keys if key in node), None) for keys in (LOW, HIGH))
    ends = node["_value"] if isinstance(node.get("_value"), list) else [low, high]
    written = next((node[key] for key in KIND if key in node), "int" if "step" in node else "float")
    kind = KIND_OF.get(str(written))
    if node.get("log") is True:
        kind = {"int": "logint", "uniform": "loguniform"}.get(str(kind), kind)
    return _space(kind, ends)


def _from_text(text: str) -> Space | None:
    found = CALL.fullmatch(text.strip())
    try:
        items = read_yaml(f"[{found[2] if found else text}]", "").data
    except UserError:
        return None
    if not found:
        return _space("choice", items) if "," in text and all(_is_number(item) for item in items) else None
    if found[1] == "tag" and items and items[0] == "log":  # Hydra: tag(log, interval(a, b))
        inner = _from_text(text.partition(",")[2].strip()[:-1])
        return _space("loguniform", next(iter(inner.values()))) if inner else None
    kind = KIND_OF.get(found[1])
    items = items[0] if kind == "choice" and len(items) == 1 and isinstance(items[0], list) else items
    return _space(kind, items if kind == "choice" else items[:2])


def _space(kind: str | None, items: list[Any]) -> Space | None:
    """Return the space of a kind, or None if there is no such kind or these are no values of it."""
    if kind == "choice":
        return {"choice": items} if items else None
    if kind is None or len(items) < 2 or not all(_is_number(item) for item in items[:2]):
        return None
    low, high = items[:2]
    if kind == "exponents":
        kind, low, high = "loguniform", *(float(f"{math.exp(min(end, 700)):.6g}") for end in (low, high))
    if kind in ("below", "log_below"):
        kind, high = {"below": "int", "log_below": "logint"}[kind], high - 1
    if kind in ("int", "logint") and not (isinstance(low, int) and isinstance(high, int)):
        kind = {"int": "uniform", "logint": "loguniform"}[kind]
    if low >= high or (kind.startswith("log") and low <= 0):
        return None
    return {kind: [low, high]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
