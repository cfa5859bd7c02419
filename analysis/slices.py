"""The objective by each searched hyperparameter."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import style
from analysis.frame import AXIS, Study
from analysis.importance import LOG_KINDS, branch_labels, branches_of
from analysis.plots import at_the_edge, axis_label, frame_scores, mark_failed, scores_of
from analysis.tables import short_names
from kdtrain.storage.folder import Row

PRUNED: dict[str, Any] = {"marker": "v", "s": 22, "facecolor": "white", "linewidths": 0.9, "alpha": 0.75}
PRUNED_AT = " (best epoch before it was stopped)"
PUBLISHED: dict[str, Any] = {
    "marker": "D", "s": 62, "facecolor": "none", "edgecolor": style.VERMILION, "linewidths": 1.3,
}  # fmt: skip
SCALES = {
    "choice": "choice", "loguniform": "log scale", "logint": "log scale, integers", "int": "linear scale, integers",
    "uniform": "linear scale",
}  # fmt: skip


def slices(study: Study) -> Figure | None:
    """Draw the objective by each searched hyperparameter on its own scale, coloured by branch."""
    search = study.stage("search")
    drawn = [p for p in study.parameters if study.values.loc[search.index, p["name"]].notna().any()]
    if not drawn or scores_of(study, search).empty:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    made = style.figure(max(5.0, 3.1 * columns), 2.7 * rows + 0.5)
    panels = made.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    colours = {
        _title(labels): style.SERIES[i % len(style.SERIES)] for i, labels in enumerate(branch_labels(study.parameters))
    }
    titles = [_title(labels) for labels in branches_of(study.values.loc[search.index], study.parameters)]
    branch = pd.Series(titles, index=search.index, dtype=object)
    names = short_names([p["name"] for p in study.parameters])
    frame_scores(panels[0], study, search)
    for axes, parameter in zip(panels, drawn, strict=False):
        _slice(axes, study, parameter, search, branch, colours)
        axes.set_title(names[parameter["name"]])
        axes.set_xlabel(SCALES[parameter["kind"]])
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(axis_label(study))
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    made.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return made


def _slice(
    axes: Axes, study: Study, parameter: Row, search: pd.DataFrame, branch: pd.Series, colours: Mapping[str, str]
) -> None:
    values = study.values.loc[search.index, parameter["name"]].dropna()
    labels = list(parameter["choices"] or [])
    x = values.map(labels.index).astype(float) if labels else values.astype(float)
    if labels:  # side by side, not on top of each other: by trial number, so that it is the same each time
        x = x + 0.24 * ((search.loc[x.index, "number"] * 0.618034) % 1 - 0.5)
        shown = [str(label) for label in labels]
        axes.set_xticks(range(len(labels)), shown, rotation=20 if max(map(len, shown)) > 8 else 0)
        axes.set_xlim(-0.6, len(labels) - 0.4)
    elif parameter["kind"] in LOG_KINDS:
        _log_axis(axes, parameter)
    else:
        margin = 0.04 * (parameter["high"] - parameter["low"])
        axes.set_xlim(parameter["low"] - margin, parameter["high"] + margin)
    trials = search.loc[x.index]
    y = at_the_edge(axes, trials[study.objective] * AXIS[study.objective][1])
    for title, colour in colours.items():
        inside = trials[(branch.loc[x.index] == title) & y.notna()]
        complete: dict[str, Any] = {"marker": "o", "s": 24, "color": colour, "edgecolor": "white", "linewidths": 0.4}
        pruned = PRUNED | {"edgecolor": colour}
        for state, look in (("pruned", pruned), ("complete", complete)):
            at = inside[inside["state"] == state].index
            if len(at):
                label = f"{title}{state}" + (PRUNED_AT if state == "pruned" else "")
                axes.scatter(x.loc[at], y.loc[at], label=label, clip_on=False, **look)
    published = trials[trials["published"] & y.notna()].index
    if len(published):
        axes.scatter(x.loc[published], y.loc[published], label="published point", **PUBLISHED)
    mark_failed(axes, trials, x)


def _log_axis(axes: Axes, parameter: Row) -> None:
    axes.set_xscale("log")
    axes.set_xlim(parameter["low"] / 1.1, parameter["high"] * 1.1)
    decades = np.log10(parameter["high"] / parameter["low"])
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _title(labels: Mapping[str, str]) -> str:
    return "".join(f"{label}, " for label in labels.values())
