"""Pictures of the search: its history and the importances; None if there is nothing to draw."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.frame import AXIS, BROKEN, Study, complete_trials
from analysis.importance import Branch
from analysis.tables import short_names


def history(study: Study) -> Figure | None:
    """Draw the objective by trial number and state with the best so far, for the search and the baselines."""
    search, baselines = study.stage("search"), study.stage("baselines")
    if scores_of(study, search).empty:
        return None
    made = style.figure(7.2, 3.9)
    axes = made.subplots()
    _scores(axes, study, search, "complete", marker="o", color=style.BLUE, label="complete")
    published = search[search["published"]]
    _scores(axes, study, published, "complete", marker="D", color=style.VERMILION, label="published point")
    _scores(axes, study, search, "pruned", marker="v", facecolor="white", edgecolor=style.GREY, label="pruned")
    _scores(axes, study, baselines, "complete", marker="s", color=style.ORANGE, label="student alone", s=20)
    last = max(search["number"].max(), baselines["number"].max() if len(baselines) else 0)
    _best_so_far(axes, study, search, last, color=style.BLUE, label="best so far, distilled")
    _best_so_far(axes, study, baselines, last, color=style.ORANGE, linestyle="--", label="best so far, student alone")
    mark_failed(axes, search, search["number"])
    frame_scores(axes, study, pd.concat([search, baselines[baselines["state"] == "complete"]]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial number", ylabel=f"{axis_label(study)}\n(best epoch)", title="Optimisation history")
    made.legend(loc="outside lower center", ncols=4)
    return made


def importances(branches: list[Branch]) -> Figure | None:
    """Draw the share of the objective's variance that each hyperparameter explains alone, one panel per branch."""
    drawn = [branch for branch in branches if branch.shares]
    if not drawn:
        return None
    bars = [len(branch.shares or {}) for branch in drawn]
    made = style.figure(7.0, 0.9 + sum(0.32 * n + 0.75 for n in bars))
    panels = made.subplots(len(drawn), 1, squeeze=False, sharex=True, height_ratios=[n + 0.8 for n in bars]).ravel()
    for axes, branch in zip(panels, drawn, strict=True):
        assert branch.shares is not None
        names = short_names([p["name"] for p in branch.parameters])
        ordered = sorted(branch.shares.items(), key=lambda item: item[1])
        labels, shares = [names[name] for name, _ in ordered], [share for _, share in ordered]
        drawn_bars = axes.barh(labels, shares, color=style.BLUE, height=0.62)
        axes.bar_label(drawn_bars, [f"{share:.2f}" for share in shares], padding=4, fontsize=8)
        is_titled = len(drawn) > 1 or branch.labels
        axes.set_title(
            f"{branch.title}  (n = {branch.complete})" if is_titled else f"n = {branch.complete} complete trials"
        )
        axes.set_xlim(0, 1.08)
        axes.grid(visible=False, axis="y")
    panels[-1].set_xlabel("share of the objective's variance (fANOVA)")
    return made


def axis_label(study: Study) -> str:
    return AXIS[study.objective][0]


def _scores(axes: Axes, study: Study, trials: pd.DataFrame, state: str, *, label: str, **look: Any) -> None:
    shown = trials[(trials["state"] == state) & trials[study.objective].notna()]
    if len(shown):
        y = shown[study.objective] * AXIS[study.objective][1]
        axes.scatter(shown["number"], y, **({"s": 26, "zorder": 3, "linewidths": 1.1} | look), label=label)


def _best_so_far(axes: Axes, study: Study, trials: pd.DataFrame, last: int, **look: Any) -> None:
    """Draw the best of the complete trials so far, up to the number of the last trial."""
    known = complete_trials(trials, study.objective)
    if len(known) == 0:
        return
    scores = known[study.objective] * AXIS[study.objective][1]
    best = scores.cummax() if study.larger_is_better else scores.cummin()
    axes.step([*known["number"], last], [*best, best.iloc[-1]], where="post", linewidth=1.5, **look)


def mark_failed(axes: Axes, trials: pd.DataFrame, x: pd.Series) -> None:
    """Draw failed and broken trials, which have no score, as crosses on the axis."""
    for state, marker in (("failed", "x"), (BROKEN, "+")):
        own = trials[trials["state"] == state].index
        if len(own):
            look: dict[str, Any] = {"marker": marker, "color": style.INK, "s": 26, "clip_on": False, "zorder": 4}
            axes.scatter(x.loc[own], [0.02] * len(own), transform=axes.get_xaxis_transform(), label=state, **look)


def scores_of(study: Study, trials: pd.DataFrame) -> pd.Series:
    """Return the objective in the unit of its axis; a failed or broken trial has none, even if it had epochs before."""
    scored = trials.loc[~trials["state"].isin(["failed", BROKEN]), study.objective].dropna()
    return scored * AXIS[study.objective][1]


def frame_scores(axes: Axes, study: Study, trials: pd.DataFrame) -> None:
    """Set limits that keep most trials legible: scores far from the middle half are left out and counted."""
    scores = scores_of(study, trials)
    q25, q75 = np.quantile(scores, [0.25, 0.75])
    reach = max(1.5 * (q75 - q25), 1e-3)
    if study.larger_is_better:
        inside, side = scores[scores >= q25 - reach], "below"
    else:
        inside, side = scores[scores <= q75 + reach], "above"
    margin = 0.08 * max(inside.max() - inside.min(), 1e-3)
    axes.set_ylim(inside.min() - 1.5 * margin, inside.max() + margin)
    outside = len(scores) - len(inside)
    if outside:  # beside the title: inside the axes it would hide points
        note = f"{outside} trial{'s' if outside > 1 else ''} {side} the frame"
        axes.set_title(note, loc="right", fontsize=7.5, fontweight="normal", fontstyle="italic", color="#666666")
