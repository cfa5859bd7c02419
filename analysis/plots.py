"""Pictures of the search: history, a slice per parameter, importance; None where there is nothing to draw."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import style
from analysis.frame import Study
from analysis.importance import LOG_KINDS, Branch, branch_labels, branch_of
from analysis.tables import short_names
from kdtrain.store import Row

AXIS = {
    "val/accuracy": ("validation accuracy, %", 100.0),
    "val/nll": ("validation cross-entropy (NLL), nats", 1.0),
}


def history(study: Study) -> Figure | None:
    """Objective by trial number, by state, with the best so far; the baselines beside it."""
    search, baselines = study.stage("search"), study.stage("baselines")
    if search[study.objective].notna().sum() == 0:
        return None
    made = style.figure(7.2, 3.9)
    axes = made.subplots()
    complete = search[search["state"] == "complete"]
    _scores(axes, study, search, "complete", marker="o", color=style.BLUE, label="complete")
    _scores(
        axes,
        study,
        search[search["published"]],
        "complete",
        marker="D",
        color=style.VERMILION,
        label="published point",
    )
    _scores(
        axes, study, search, "pruned", marker="v", facecolor="white", edgecolor=style.GREY, label="pruned"
    )
    _scores(axes, study, baselines, "complete", marker="s", color=style.ORANGE, label="student alone", s=20)
    _best_so_far(axes, study, complete, style.BLUE, "-", "best so far, distilled")
    _best_so_far(
        axes,
        study,
        baselines[baselines["state"] == "complete"],
        style.ORANGE,
        "--",
        "best so far, student alone",
    )
    _failed(axes, search, search["number"])
    _frame_scores(axes, study, pd.concat([search, baselines]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial number", ylabel=f"{_label(study)}\n(best epoch)", title="Optimisation history")
    made.legend(loc="outside lower center", ncols=4)
    return made


def slices(study: Study) -> Figure | None:
    """The objective by each searched parameter, on the parameter's own scale, coloured by branch."""
    search = study.stage("search")
    drawn = [p for p in study.parameters if study.values.loc[search.index, p["name"]].notna().any()]
    if not drawn or search[study.objective].notna().sum() == 0:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    made = style.figure(max(5.0, 3.1 * columns), 2.7 * rows + 0.5)
    panels = made.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    colours = {
        _title(labels): style.SERIES[i % len(style.SERIES)]
        for i, labels in enumerate(branch_labels(study.parameters))
    }
    branch = pd.Series(
        [_title(branch_of(study.values.loc[i], study.parameters)) for i in search.index],
        index=search.index,
        dtype=object,
    )
    names = short_names([p["name"] for p in study.parameters])
    for axes, parameter in zip(panels, drawn, strict=False):
        _slice(axes, study, parameter, search, branch, colours)
        axes.set_title(names[parameter["name"]])
        axes.set_xlabel(_scale(parameter))
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(_label(study))
    _frame_scores(panels[0], study, search)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    made.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return made


def importances(branches: list[Branch]) -> Figure | None:
    """Share of the objective's variance that each parameter explains alone, a panel a branch."""
    drawn = [branch for branch in branches if branch.shares]
    if not drawn:
        return None
    bars = [len(branch.shares or {}) for branch in drawn]
    made = style.figure(7.0, 0.9 + sum(0.32 * n + 0.75 for n in bars))
    panels = made.subplots(
        len(drawn), 1, squeeze=False, sharex=True, height_ratios=[n + 0.8 for n in bars]
    ).ravel()
    for axes, branch in zip(panels, drawn, strict=True):
        assert branch.shares is not None
        names = short_names([p["name"] for p in branch.parameters])
        ordered = sorted(branch.shares.items(), key=lambda item: item[1])
        drawn_bars = axes.barh(
            [names[name] for name, _ in ordered],
            [share for _, share in ordered],
            color=style.BLUE,
            height=0.62,
        )
        axes.bar_label(drawn_bars, [f"{share:.2f}" for _, share in ordered], padding=4, fontsize=8)
        axes.set_title(
            f"{branch.title}  (n = {branch.complete})"
            if len(drawn) > 1 or branch.labels
            else f"n = {branch.complete} complete trials"
        )
        axes.set_xlim(0, 1.08)
        axes.grid(visible=False, axis="y")
    panels[-1].set_xlabel("share of the objective's variance (fANOVA)")
    return made


def _label(study: Study) -> str:
    return AXIS[study.objective][0]


def _scores(axes: Axes, study: Study, trials: pd.DataFrame, state: str, *, label: str, **look: Any) -> None:
    shown = trials[(trials["state"] == state) & trials[study.objective].notna()]
    if len(shown):
        y = shown[study.objective] * AXIS[study.objective][1]
        axes.scatter(shown["number"], y, **({"s": 26, "zorder": 3, "linewidths": 1.1} | look), label=label)


def _best_so_far(
    axes: Axes, study: Study, complete: pd.DataFrame, colour: str, line: str, label: str
) -> None:
    known = complete[complete[study.objective].notna()]
    if len(known) == 0:
        return
    scores = known[study.objective] * AXIS[study.objective][1]
    best = scores.cummax() if study.larger_is_better else scores.cummin()
    axes.step(known["number"], best, where="post", color=colour, linestyle=line, linewidth=1.5, label=label)


def _failed(axes: Axes, trials: pd.DataFrame, x: pd.Series) -> None:
    """A failed trial has no score: a cross on the axis, not a point at 0."""
    failed = trials[trials["state"] == "failed"].index
    if len(failed):
        on_axis = axes.get_xaxis_transform()
        axes.scatter(
            x.loc[failed],
            [0.02] * len(failed),
            transform=on_axis,
            marker="x",
            color=style.INK,
            s=26,
            clip_on=False,
            label="failed",
            zorder=4,
        )


def _frame_scores(axes: Axes, study: Study, trials: pd.DataFrame) -> None:
    """Keeps the many good trials legible: what is far off the middle half is left out, and counted."""
    scores = (
        trials.loc[trials["state"] != "failed", study.objective].dropna().to_numpy()
        * AXIS[study.objective][1]
    )
    q25, q75 = np.quantile(scores, [0.25, 0.75])
    reach = max(2.5 * (q75 - q25), 1e-3)
    low, high = (
        (max(scores.min(), q25 - reach), scores.max())
        if study.larger_is_better
        else (scores.min(), min(scores.max(), q75 + reach))
    )
    margin = 0.08 * max(high - low, 1e-3)
    axes.set_ylim(low - margin * 1.5, high + margin)
    outside = int(((scores < low - margin * 1.5) | (scores > high + margin)).sum())
    if outside:
        side, y, up = ("below", 0.06, "bottom") if study.larger_is_better else ("above", 0.97, "top")
        text = f"{outside} trial{'s' if outside > 1 else ''} {side} the frame"
        axes.text(
            0.995,
            y,
            text,
            transform=axes.transAxes,
            ha="right",
            va=up,
            fontsize=7.5,
            color="#666666",
            style="italic",
        )


def _slice(
    axes: Axes,
    study: Study,
    parameter: Row,
    search: pd.DataFrame,
    branch: pd.Series,
    colours: Mapping[str, str],
) -> None:
    values = study.values.loc[search.index, parameter["name"]].dropna()
    labels = list(parameter["choices"] or [])
    x = values.map(labels.index).astype(float) if labels else values.astype(float)
    if (
        labels
    ):  # side by side rather than on top of each other; by trial number, so that it is the same each time
        x = x + 0.24 * ((search.loc[x.index, "number"] * 0.618034) % 1 - 0.5)
        axes.set_xticks(range(len(labels)), labels, rotation=20 if max(map(len, labels)) > 8 else 0)
        axes.set_xlim(-0.6, len(labels) - 0.4)
    elif parameter["kind"] in LOG_KINDS:
        _log_axis(axes, parameter)
    trials = search.loc[x.index]
    y = trials[study.objective] * AXIS[study.objective][1]
    for title, colour in colours.items():
        inside = trials[(branch.loc[x.index] == title) & y.notna()]
        complete, pruned = (
            inside[inside["state"] == "complete"].index,
            inside[inside["state"] == "pruned"].index,
        )
        axes.scatter(
            x.loc[pruned],
            y.loc[pruned],
            marker="v",
            s=22,
            facecolor="white",
            edgecolor=colour,
            linewidths=0.9,
            alpha=0.75,
            label=f"{title}pruned",
        )
        axes.scatter(
            x.loc[complete],
            y.loc[complete],
            marker="o",
            s=24,
            color=colour,
            edgecolor="white",
            linewidths=0.4,
            label=f"{title}complete",
        )
    published = trials[trials["published"] & y.notna()].index
    if len(published):
        axes.scatter(
            x.loc[published],
            y.loc[published],
            marker="D",
            s=62,
            facecolor="none",
            edgecolor=style.VERMILION,
            linewidths=1.3,
            label="published point",
        )
    _failed(axes, trials, x)


def _log_axis(axes: Axes, parameter: Row) -> None:
    axes.set_xscale("log")
    axes.set_xlim(parameter["low"] / 1.1, parameter["high"] * 1.1)
    decades = np.log10(parameter["high"] / parameter["low"])
    subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scale(parameter: Row) -> str:
    return {
        "choice": "choice",
        "loguniform": "log scale",
        "logint": "log scale, integers",
        "int": "linear scale, integers",
    }.get(parameter["kind"], "linear scale")


def _title(labels: Mapping[str, str]) -> str:
    return "".join(f"{label}, " for label in labels.values())
