"""Learning curves of the confirming runs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.bands import band_of, draw_band
from analysis.claims import Candidate, Single
from analysis.frame import AXIS, Study


def learning_curves(study: Study, winner: Candidate, baseline: Candidate, teacher: Single | None) -> Figure | None:
    """Draw the mean over the confirming seeds with its 95 % t interval, for the winner and its baseline."""
    if not winner.trial_ids or not baseline.trial_ids:
        return None
    made = style.figure(8.6, 3.7)
    panels = made.subplots(1, 2)
    for axes, metric in zip(panels, ("val/accuracy", "val/nll"), strict=True):
        label, factor = AXIS[metric]
        highest = 100.5 if metric == "val/accuracy" else np.inf
        alone, distilled = (
            band_of(study, list(candidate.trial_ids.values()), metric) * factor for candidate in (baseline, winner)
        )
        draw_band(
            axes,
            alone,
            alpha=0.22,
            color=style.ORANGE,
            linestyle="--",
            label=f"student alone, n = {len(baseline.trial_ids)}",
        )
        draw_band(
            axes, distilled, color=style.BLUE, alpha=0.22, label=f"student distilled, n = {len(winner.trial_ids)}"
        )
        _frame_late_epochs(axes, pd.concat([_late(alone), _late(distilled)]), highest)
        axes.set(xlabel="epoch", ylabel=label)
    if teacher is not None and not np.isnan(teacher.validation):
        reached = 100 * teacher.validation
        panels[0].axhline(reached, color=style.INK, linewidth=1.0, linestyle=":", label="teacher, best epoch")
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(min(low, reached - 0.05 * (high - low)), max(high, reached + 0.05 * (high - low)))
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    title = (
        "Learning curves of the confirming runs, to the end of the shortest: mean and its 95 % t interval over seeds"
    )
    made.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return made


def _late(band: pd.DataFrame) -> pd.DataFrame:
    return band.iloc[len(band) // 10 :]


def _frame_late_epochs(axes: Axes, late: pd.DataFrame, highest: float) -> None:
    """Leave out the first epochs, which would flatten the rest, and values above `highest`."""
    low, high = late["low"].min(), late["high"].max()
    margin = 0.05 * max(high - low, 1e-6)
    if len(late):
        axes.set_ylim(max(low - margin, 0.0), min(high + margin, highest))
