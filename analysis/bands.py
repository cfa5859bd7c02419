"""Metrics by epoch of several groups of runs, one band per group."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.frame import Study
from analysis.references.reference import Curves
from analysis.statistics import mean_estimate

LINES = ("-", "--", "-.", ":")


def bands_and_zoom(study: Study, curves: Curves) -> Figure | None:
    """Draw all epochs above, the last ones below if the curves are zoomed; None if no run has any of the metrics."""
    groups, metrics = curves.trial_ids, curves.metrics
    known = [metric for metric in metrics if metric in study.epochs]
    if not known:
        return None
    parts = {"all epochs": 0}
    if curves.zoomed_epochs:
        parts[f"last {curves.zoomed_epochs} epochs"] = -curves.zoomed_epochs
    made = style.figure(3.1 * len(known) + 0.6, 0.8 + 2.2 * len(parts))
    grid = made.subplots(len(parts), len(known), squeeze=False)
    for column, metric in enumerate(known):
        for number, (label, trial_ids) in enumerate(groups.items()):
            band = band_of(study, trial_ids, metric) * (100 if metric.endswith("accuracy") else 1)
            look = {"color": style.SERIES[number % len(style.SERIES)], "linestyle": LINES[number % len(LINES)]}
            for row, first in enumerate(parts.values()):
                axes, of_n = grid[row][column], f"{label}, n = {len(trial_ids)}"
                draw_band(axes, band.iloc[first:], alpha=0.18, label=of_n, **look)
        grid[0][column].set(title=metrics[metric])
        grid[-1][column].set(xlabel="epoch")
    for row, label in enumerate(parts):
        grid[row][0].set_ylabel(label)
    made.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(groups))
    return made


def band_of(study: Study, trial_ids: Sequence[str], metric: str) -> pd.DataFrame:
    """Return mean, low and high of the 95 % t interval over the runs, by epoch to the end of the shortest run.

    Low and high are the mean if there is no interval.
    """
    rows = study.epochs[study.epochs["trial_id"].isin(list(trial_ids))]
    by_epoch = rows.pivot(index="epoch", columns="trial_id", values=metric).dropna().astype(float)
    estimates = [mean_estimate(row.tolist()) for _, row in by_epoch.iterrows()]
    spans = [(e.mean, e.mean - (e.half_width or 0), e.mean + (e.half_width or 0)) for e in estimates if e]
    return pd.DataFrame(spans, columns=["mean", "low", "high"], index=by_epoch.index)


def draw_band(axes: Axes, band: pd.DataFrame, *, color: str, alpha: float, **look: Any) -> None:
    """Draw a band over epochs; `look` are properties of the line."""
    axes.fill_between(band.index, band["low"], band["high"], color=color, alpha=alpha, linewidth=0)
    axes.plot(band.index, band["mean"], color=color, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
