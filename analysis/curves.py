"""Learning curves of the confirming runs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.bands import band_of, draw_band
from analysis.claims import Candidate, Single
from analysis.frame import AXIS, Study

ALONE: dict[str, Any] = {"color": style.ORANGE, "linestyle": "--"}
DISTILLED: dict[str, Any] = {"color": style.BLUE}


def learning_curves(study: Study, winner: Candidate, baseline: Candidate, teacher: Single | None) -> Figure | None:
    """Draw the mean over the confirming seeds with its 95 % t interval, for the winner and its baseline."""
    if not winner.trial_ids or not baseline.trial_ids:
        return None
    made = style.figure(8.6, 3.7)
    panels = made.subplots(1, 2)
    for axes, metric in zip(panels, ("val/accuracy", "val/nll"), strict=True):
        label, factor = AXIS[metric]
        highest = 100.5 if metric == "val/accuracy" else np.inf
        late = []
        for who, candidate, look in (("alone", baseline, ALONE), ("distilled", winner, DISTILLED)):
            trial_ids = list(candidate.trial_ids.values())
            band = band_of(study, trial_ids, metric) * factor
            draw_band(axes, band, alpha=0.22, label=f"student {who}, n = {len(trial_ids)}", **look)
            late.append(band.iloc[len(band) // 10 :])
        _frame_late_epochs(axes, pd.concat(late), highest)
        axes.set(xlabel="epoch", ylabel=label)
    if teacher is not None and not np.isnan(teacher.validation):
        reached = 100 * teacher.validation
        panels[0].axhline(reached, color=style.INK, linewidth=1.0, linestyle=":", label="teacher, best epoch")
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(min(low, reached - 0.05 * (high - low)), max(high, reached + 0.05 * (high - low)))
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    shown = "mean and its 95 % t interval over seeds"
    style.title(made, f"Learning curves of the confirming runs, to the end of the shortest: {shown}")
    return made


def _frame_late_epochs(axes: Axes, late: pd.DataFrame, highest: float) -> None:
    """Leave out the first epochs, which would flatten the rest, and values above `highest`."""
    low, high = late["low"].min(), late["high"].max()
    margin = 0.05 * max(high - low, 1e-6)
    if len(late):
        axes.set_ylim(max(low - margin, 0.0), min(high + margin, highest))
