"""Forest plot of the primary claims of all sweeps (Lewis and Clarke 2001, BMJ 322, 1479-1480)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.claims import BEAT, LOST, UNDECIDED
from analysis.statistics import SEEDS_FOR_A_CLAIM
from analysis.summary import UNFINISHED, Summary
from analysis.tables import estimate_points

LOOKS = {
    BEAT: (style.BLUE, "o"),
    LOST: (style.VERMILION, "s"),
    UNDECIDED: (style.INK, "D"),
    UNFINISHED: (style.GREY, "^"),
}
ROW, SMALL = 0.46, 7.5  # inches, points: three lines of small text fit into a row


def write_forest(summaries: Sequence[Summary], path: Path) -> bool:
    """Write the forest plot; return False if there is nothing to draw."""
    with style.look():
        made = forest(summaries)
        if made is not None:
            style.save(made, path)
    return made is not None


def forest(summaries: Sequence[Summary]) -> Figure | None:
    """Draw the mean difference and its 95 % t interval in points, one row per sweep; None if no sweep has a difference.

    An open marker means that there is no interval or that the study is unfinished. The text of a row without a marker
    gives the reason.
    """
    if all(summary.difference is None for summary in summaries):
        return None
    made = style.figure(9.6, 1.35 + ROW * len(summaries))
    axes = made.subplots()
    low, high = limits(summaries)
    axes.set(xlim=(low, high), ylim=(len(summaries) - 0.4, -0.6))
    axes.set_xlabel("winner minus student alone, percentage points of test accuracy")
    axes.axvline(0, color=style.INK, linewidth=1.0)
    for row, summary in enumerate(summaries):
        _draw(axes, row, summary, low, high)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, pad=9)
    axes.set_yticks(range(len(summaries)), [_wrapped(summary.name, 26, lines=3) for summary in summaries])
    _texts_at_the_right(axes, summaries)
    style.title(made, "Does distillation beat the student alone? Primary claim of each sweep: mean and 95 % t interval")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(sorted(zip(labels, handles, strict=True), key=lambda item: list(LOOKS).index(item[0].split(",")[0])))
    made.legend(list(once.values()), list(once), loc="outside lower center", ncols=3 if len(once) > 4 else 4)
    return made


def limits(summaries: Sequence[Summary]) -> tuple[float, float]:
    """Return the limits of the axis in points: all means and 0 are inside, and all intervals but the very long ones.

    With n = 2 an interval is 18 standard errors wide; one that is cut off ends in an arrow.
    """
    known = [(summary.difference, ends) for summary in summaries if summary.difference and (ends := _ends(summary))]
    claimed = [ends for difference, ends in known if difference.n >= SEEDS_FOR_A_CLAIM] or [ends for _, ends in known]
    reach = 3 * float(np.median([max(map(abs, ends)) for ends in claimed])) if claimed else 0.0
    means = [100 * summary.difference.mean for summary in summaries if summary.difference]
    low = min(0.0, *means, max(-reach, min((ends[0] for _, ends in known), default=0.0)))
    high = max(0.0, *means, min(reach, max((ends[1] for _, ends in known), default=0.0)))
    margin = max(0.06 * (high - low), 0.05)
    return low - margin, high + margin


def _draw(axes: Axes, row: int, summary: Summary, low: float, high: float) -> None:
    if summary.difference is None:
        return
    colour, marker = LOOKS[summary.verdict.name]
    ends = _ends(summary)
    is_open = ends is None or summary.verdict.name == UNFINISHED
    if ends:
        axes.plot(np.clip(ends, low, high), (row, row), color=colour, linewidth=1.8, solid_capstyle="butt")
        for end, edge, arrow in ((ends[0], low, "<"), (ends[1], high, ">")):
            if end < low or end > high:
                axes.scatter(edge, row, marker=arrow, s=44, color=colour, clip_on=False, zorder=4)
            else:
                axes.plot((end, end), (row - 0.1, row + 0.1), color=colour, linewidth=1.2)
    label = summary.verdict.name + (", no interval" if ends is None else "")
    look: dict[str, Any] = {"marker": marker, "s": 46, "edgecolor": colour, "linewidths": 1.4, "zorder": 5}
    face = "white" if is_open else colour
    axes.scatter(100 * summary.difference.mean, row, facecolor=face, label=label, **look)


def _texts_at_the_right(axes: Axes, summaries: Sequence[Summary]) -> None:
    """Write the texts as labels of a second axis, for which the layout makes room."""
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.grid(visible=False)
    right.tick_params(axis="y", length=0, pad=9, labelsize=SMALL)
    right.set_yticks(range(len(summaries)))
    texts = []
    for summary in summaries:
        difference = summary.difference
        above = f"{estimate_points(difference)}, n = {difference.n}\n" if difference else ""
        texts.append(above + _wrapped(str(summary.verdict), 52, lines=2))
    for label, summary in zip(right.set_yticklabels(texts), summaries, strict=True):
        label.set_fontweight("bold" if summary.decided else "normal")


def _wrapped(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def _ends(summary: Summary) -> tuple[float, float] | None:
    """Return the ends of the interval in points."""
    interval = summary.difference.interval if summary.difference else None
    return None if interval is None else (100 * interval.low, 100 * interval.high)
