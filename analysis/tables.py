"""Numbers as people read them, frames as markdown tables; the same frame gives the same bytes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.statistics import Estimate, Interval

MISSING = "—"


def missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def markdown(frame: pd.DataFrame) -> str:
    """A table of text cells; a column is aligned right where all that it shows begins as a number does."""
    rows = [[_cell(cell) for cell in row] for row in frame.itertuples(index=False)]
    heads = [_cell(name) for name in frame.columns]
    numeric = [
        all(_is_number(row[i]) for row in rows) and any(row[i] != MISSING for row in rows) for i in range(len(heads))
    ]
    rule = ["--:" if right else ":--" for right in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows]) + "\n"


def percent(fraction: float | None, decimals: int = 2) -> str:
    return MISSING if missing(fraction) else f"{100 * fraction:.{decimals}f}"  # type: ignore[operator]


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points, signed; what rounds to zero has no sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def points_interval(interval: Interval | None) -> str:
    return "no interval" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def estimate_percent(estimate: Estimate | None) -> str:
    """97.20 ± 0.12; the mean alone where n gives no interval."""
    if estimate is None:
        return MISSING
    return percent(estimate.mean) + ("" if estimate.half_width is None else f" ± {percent(estimate.half_width)}")


def estimate_number(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return f"{estimate.mean:.4f}" + ("" if estimate.half_width is None else f" ± {estimate.half_width:.4f}")


def estimate_points(estimate: Estimate | None) -> str:
    """+0.81 [+0.50 to +1.12]"""
    return MISSING if estimate is None else f"{points(estimate.mean)} [{points_interval(estimate.interval)}]"


def bold_if(bold: bool, text: str) -> str:
    return f"**{text}**" if bold else text


def number(value: float | None, decimals: int = 4) -> str:
    return MISSING if missing(value) else f"{value:.{decimals}f}"


def count(value: float | None) -> str:
    return MISSING if missing(value) else f"{int(value):,}".replace(",", " ")  # type: ignore[arg-type]


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def sampled(value: Any) -> str:
    """A searched value: four significant digits, which is more than a search resolves."""
    if missing(value):
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """As few last parts of each name as tell it from the others: method[kd].temperature -> temperature."""
    parts = {name: name.split(".") for name in names}
    longest = max((len(split) for split in parts.values()), default=0)
    short: dict[str, str] = {}
    for length in range(1, longest + 1):
        ends = {name: ".".join(split[-length:]) for name, split in parts.items()}
        once = list(ends.values())
        short |= {name: end for name, end in ends.items() if name not in short and once.count(end) == 1}
    return {name: short.get(name, name) for name in names}


def described(values: Mapping[str, Any]) -> str:
    """`temperature` 4.1, `lr` 0.03: searched values in a sentence."""
    short = short_names(list(values))
    return ", ".join(f"`{short[name]}` {sampled(value)}" for name, value in values.items() if not missing(value))


def one_line(text: Any, longest: int = 160) -> str:
    """The first line of a reason, cut where it is long; trials' logs have the rest."""
    lines = str(text).strip().splitlines() if not missing(text) else []
    if not lines:
        return "no reason recorded"
    return lines[0] if len(lines[0]) <= longest else lines[0][: longest - 1] + "…"


def listed(numbers: Iterable[Any], most: int = 12) -> str:
    items = [str(item) for item in numbers]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _cell(value: Any) -> str:
    return MISSING if missing(value) else str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(text: str) -> bool:
    return text == MISSING or text.lstrip("*+-< ")[:1].isdigit()
