"""The picture of a trade-off: test accuracy of the confirmed points of both fronts against their cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis import style
from analysis.frame import Study
from analysis.tradeoff import UNITS, Front, Point

LOOKS: dict[str, dict[str, Any]] = {
    "search": {"color": style.BLUE, "marker": "o"},
    "baselines": {"color": style.ORANGE, "marker": "s", "linestyle": "--"},
}
APART = 1.012
"""The factor by which the markers of both fronts are moved apart, so that intervals at equal costs do not hide."""


def pareto(found: Sequence[Front], study: Study) -> Figure | None:
    """Draw test accuracy with its 95 % t interval against cost, distilled and alone; None before anything is tested.

    A point without an interval (two seeds give none if they are equal, a diverged one has none) has an open marker.
    """
    tested = {front.race: [point for point in front.points if _test(point) is not None] for front in found}
    if not any(tested.values()):
        return None
    label, _, write = UNITS[str(study.tradeoff)]
    made = style.figure(6.4, 4.2)
    axes = made.subplots()
    for front, moved in zip(found, (APART, 1 / APART), strict=False):
        points, look = tested[front.race], LOOKS[front.race]
        x = [point.cost * moved for point in points]
        y = [100 * _test(point).mean for point in points]
        widths = [100 * (_test(point).half_width or 0.0) for point in points]
        axes.errorbar(x, y, yerr=widths, capsize=3, elinewidth=1.1, label=front.title.lower(), **look)
        is_open = np.array(widths) == 0
        axes.scatter(np.array(x)[is_open], np.array(y)[is_open], facecolor="white", edgecolor=look["color"], zorder=4,
                     marker=look["marker"], s=26)  # fmt: skip
    names = {point.cost: point.model for points in tested.values() for point in points}
    axes.set(xscale="log", xlabel=label, ylabel="test accuracy, %", title=f"Accuracy against {label}")
    axes.set_xticks(list(names), [f"{name}\n{write(cost)}" for cost, name in names.items()], rotation=20, ha="right")
    axes.minorticks_off()
    made.legend(loc="outside lower center", ncols=2)
    return made


def _test(point: Point) -> Any:
    """Return the test accuracy of a confirmed point, None if there is none or a loss became non-finite."""
    candidate = point.confirmed
    return None if candidate is None or candidate.diverged else candidate.test
