"""Numbers as text, and rows as Markdown tables. Equal data gives equal bytes."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.statistics import Estimate, Interval

MISSING = "—"
Rows = Sequence[Mapping[str, Any]]
"""Rows of a table: cells by column, in the order of the columns."""


def missing(value: Any) -> bool:
    """Return True for None and NaN."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def markdown(rows: Rows) -> str:
    """Return a Markdown table; a column in which every cell begins like a number is aligned right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [
        all(_is_number(row[i]) for row in cells) and any(row[i] != MISSING for row in cells)
        for i in range(len(columns))
    ]
    rule = ["--:" if right else ":--" for right in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[_cell(name) for name in columns], rule, *cells]) + "\n"


def percent(fraction: float | None, decimals: int = 2) -> str:
    """Return a fraction in per cent, without the sign."""
    return MISSING if missing(fraction) else f"{100 * fraction:.{decimals}f}"  # type: ignore[operator]


def points(fraction: float) -> str:
    """Return a difference of two fractions in percentage points with its sign; what rounds to zero has no sign."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def points_interval(interval: Interval | None) -> str:
    return "no interval" if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def percent_interval(fraction: float, interval: Interval) -> str:
    """Return `73.48 [71.64 to 75.27]`."""
    return f"{percent(fraction)} [{percent(interval.low)} to {percent(interval.high)}]"


def estimate_percent(estimate: Estimate | None) -> str:
    """Return `97.20 ± 0.12`, or the mean alone if there is no interval."""
    if estimate is None:
        return MISSING
    return percent(estimate.mean) + ("" if estimate.half_width is None else f" ± {percent(estimate.half_width)}")


def estimate_number(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return f"{estimate.mean:.4f}" + ("" if estimate.half_width is None else f" ± {estimate.half_width:.4f}")


def estimate_points(estimate: Estimate | None) -> str:
    """Return `+0.81 [+0.50 to +1.12]`."""
    return MISSING if estimate is None else f"{points(estimate.mean)} [{points_interval(estimate.interval)}]"


def counted_names(names: Sequence[str]) -> str:
    """Return names with their numbers: `2 x resnet18, resnet50`."""
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items())


def bold_if(bold: bool, text: str) -> str:
    return f"**{text}**" if bold else text


def number(value: float | None, decimals: int = 4) -> str:
    return MISSING if missing(value) else f"{value:.{decimals}f}"


def count(value: float | None) -> str:
    """Return a whole number with its thousands separated; fractions are cut off."""
    return MISSING if missing(value) else f"{int(value):,}".replace(",", " ")  # type: ignore[arg-type]


def thousands(value: float | None, decimals: int = 0) -> str:
    """Return a rounded number with its thousands separated."""
    return MISSING if missing(value) else f"{value:,.{decimals}f}".replace(",", " ")


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def sampled(value: Any) -> str:
    """Return a searched value with four significant digits, which is more than a search resolves."""
    if missing(value):
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique dotted end of each name: method[kd].temperature -> temperature.

    The number of a list's item is no name by itself: teacher.ensemble.weights.1 -> weights.1.
    """
    parts = {name: name.split(".") for name in names}
    longest = max((len(split) for split in parts.values()), default=0)
    short: dict[str, str] = {}
    for length in range(1, longest + 1):
        ends = {name: ".".join(split[-length:]) for name, split in parts.items()}
        once = list(ends.values())
        short |= {
            name: end
            for name, end in ends.items()
            if name not in short and not end.isdecimal() and once.count(end) == 1
        }
    return {name: short.get(name, name) for name in names}


def described(values: Mapping[str, Any]) -> str:
    """Return searched values for a sentence: `temperature` 4.1, `lr` 0.03."""
    short = short_names(list(values))
    return ", ".join(f"`{short[name]}` {sampled(value)}" for name, value in values.items() if not missing(value))


def one_line(text: Any, longest: int = 160) -> str:
    """Return the first line of a reason, cut to `longest` characters; the trial's log has the rest."""
    lines = str(text).strip().splitlines() if not missing(text) else []
    if not lines:
        return "no reason recorded"
    return lines[0] if len(lines[0]) <= longest else lines[0][: longest - 1] + "…"


def listed(items: Iterable[Any], most: int = 12) -> str:
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _cell(value: Any) -> str:
    return MISSING if missing(value) else str(value).replace("|", "\\|").replace("\n", " ")


def _is_number(text: str) -> bool:
    return text == MISSING or text.lstrip("*+-< ")[:1].isdigit()
