"""The picture of a trade-off: the searched trials, and the confirmed points of both fronts, against their cost."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.frame import AXIS, Study
from analysis.plots import at_the_edge, frame_scores
from analysis.statistics import Estimate
from analysis.tradeoff import UNITS, Front, Point

LOOKS: dict[str, dict[str, Any]] = {
    "search": {"color": style.BLUE, "marker": "o"},
    "baselines": {"color": style.ORANGE, "marker": "s", "linestyle": "--"},
}
APART = 1.03
"""The factor by which the two fronts are moved apart, so that points of equal cost do not hide one another."""


def pareto(found: Sequence[Front], study: Study) -> Figure | None:
    """Draw the searched trials and their fronts on validation data, and the confirmed points on test data.

    A confirmed point without an interval has an open marker. None before both searches have ended.
    """
    if not found:
        return None
    has_test = any(_test(point) for front in found for point in front.points)
    made = style.figure(9.2 if has_test else 4.8, 4.3)
    panels = made.subplots(1, 2 if has_test else 1, squeeze=False)[0]
    label, factor, write = UNITS[str(study.tradeoff)]
    _searched(panels[0], found, study, factor)
    if has_test:
        _confirmed(panels[1], found)
    names = {point.cost: point.model for front in found for point in front.points}
    ticks = [f"{name}\n{write(cost)}" for cost, name in names.items()]
    for axes in panels:
        axes.set(xscale="log", xlabel=label)
        axes.set_xticks(list(names), ticks, rotation=20, ha="right")
        axes.minorticks_off()
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return made


def _searched(axes: Axes, found: Sequence[Front], study: Study, factor: float) -> None:
    """Draw every searched trial with its objective, pruned ones open, and a line through the points of each front."""
    label, scale = AXIS[study.objective]
    axes.set(title="Search: one seed each", ylabel=f"{label}\n(best epoch)")
    frame_scores(axes, study, study.trials[study.trials["stage"].isin([front.race for front in found])])
    for front, moved in zip(found, (APART, 1 / APART), strict=False):
        look, trials = LOOKS[front.race], study.stage(front.race)
        for state, marker in (("complete", look["marker"]), ("pruned", "v")):
            own = trials[(trials["state"] == state) & trials[study.objective].notna() & trials["cost"].notna()]
            if len(own):
                y = at_the_edge(axes, own[study.objective] * scale)
                face = look["color"] if state == "complete" else "white"
                axes.scatter(own["cost"].astype(float) / factor * moved, y, marker=marker, s=16, facecolor=face,
                             edgecolor=look["color"], alpha=0.6, clip_on=False,
                             label=f"{front.title.lower()}, {state}")  # fmt: skip
        x = [point.cost * moved for point in front.points]
        axes.plot(x, [point.value * scale for point in front.points], **look, label=f"front, {front.title.lower()}")


def _confirmed(axes: Axes, found: Sequence[Front]) -> None:
    axes.set(title="Confirmed points: mean and 95 % t interval", ylabel="test accuracy, %")
    for front, moved in zip(found, (APART, 1 / APART), strict=False):
        look = LOOKS[front.race]
        tested = [(point.cost * moved, estimate) for point in front.points if (estimate := _test(point))]
        x, y = [cost for cost, _ in tested], [100 * estimate.mean for _, estimate in tested]
        widths = np.array([100 * (estimate.half_width or 0.0) for _, estimate in tested])
        axes.errorbar(x, y, yerr=widths, capsize=3, elinewidth=1.1, label=front.title.lower(), **look)
        is_open = widths == 0
        axes.scatter(np.array(x)[is_open], np.array(y)[is_open], facecolor="white", edgecolor=look["color"],
                     marker=look["marker"], s=26, zorder=4)  # fmt: skip


def _test(point: Point) -> Estimate | None:
    """Return the test accuracy of a confirmed point, None if there is none or a loss became non-finite."""
    candidate = point.confirmed
    return None if candidate is None or candidate.diverged else candidate.test
