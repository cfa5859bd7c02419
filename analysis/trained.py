"""What was trained: the recipe of the sweep file with its search spaces, beside that of the winner."""

from collections.abc import Mapping
from typing import Any

from analysis.frame import Study
from analysis.tables import MISSING, Rows, counted_names, missing, sampled

SPACES = {"uniform": "", "loguniform": ", log scale", "int": ", integers", "logint": ", integers on a log scale"}


def trained(study: Study) -> Rows:
    """Return a row for each part of the recipe: as the sweep file has it, and as the winner has it."""
    recipe = study.description.get("recipe") or {}
    won = study.recipes.get((study.winner or {}).get("trial_id", ""), {}).get("recipe", {})
    rows = [
        {
            "part": f"`{part}`",
            "in the sweep file": text_of(value),
            "of the winner": text_of(_as_written(value, won.get(part))),
        }
        for part, value in recipe.items()
    ]
    if study.data:
        rows.insert(
            0, {"part": "classes", "in the sweep file": study.data["classes"], "of the winner": study.data["classes"]}
        )
    if not won:
        rows = [{name: cell for name, cell in row.items() if name != "of the winner"} for row in rows]
    return rows


def _as_written(written: Any, resolved: Any) -> Any:
    """Return the winner's value of what the sweep file has; defaults that the file does not mention are left out."""
    if isinstance(written, Mapping) and isinstance(resolved, Mapping) and not _space(written):
        return {key: _as_written(value, resolved.get(key)) for key, value in written.items()}
    if isinstance(written, list) and isinstance(resolved, Mapping):  # of teachers, an ensemble
        resolved = (resolved.get("ensemble") or {}).get("of")
    if isinstance(resolved, list):
        each = written if isinstance(written, list) else [written] * len(resolved)  # one teacher with several seeds
        return [_as_written(*pair) for pair in zip(each, resolved, strict=False)]
    return resolved


def _space(value: Any) -> str | None:
    """Return a search space as text, or None if a value is none."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    ((kind, range_),) = value.items()
    if kind == "choice" and isinstance(range_, list):
        return f"{' or '.join(text_of(option) for option in range_)} (searched)"
    if kind in SPACES and isinstance(range_, list) and len(range_) == 2:
        return f"{sampled(range_[0])} to {sampled(range_[1])} (searched{SPACES[kind]})"
    return None


def text_of(value: Any, *, inside: bool = False, resets: bool = False) -> str:
    """Return `kd (temperature 4, balance (alpha_ce 0.1))` for a part of a recipe.

    Keys with null are left out, but not if `resets` is True: null in a teacher's data resets the recipe's value.
    """
    space = _space(value)
    if space is not None:
        return space
    if isinstance(value, Mapping):
        head = next((key for key in ("name", "model") if isinstance(value.get(key), str)), None)
        rest = ", ".join(
            f"{key} {'null' if each is None else text_of(each, inside=True, resets=key == 'data')}"
            for key, each in value.items()
            if key != head and (each is not None or resets)
        )
        if head is None:
            return f"({rest})" if inside else rest
        return f"{value[head]} ({rest})" if rest else str(value[head])
    if isinstance(value, list):
        texts = [text_of(item) for item in value]
        return f"[{counted_names(texts) if all(isinstance(item, Mapping) for item in value) else ', '.join(texts)}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if missing(value) else sampled(value)
