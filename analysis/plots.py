"""Pictures of the search: its history and the importances; None if there is nothing to draw."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.frame import AXIS, BROKEN, Study, complete_trials
from analysis.importance import Branch, Importance
from analysis.student_models import Model
from analysis.tables import short_names, thousands

TESTED = ("distilled_test", "alone_test")


def history(study: Study) -> Figure | None:
    """Draw the objective by trial number and state with the best so far, for the search and the baselines."""
    search, baselines = study.stage("search"), study.stage("baselines")
    if scores_of(study, search).empty:
        return None
    made = style.figure(7.2, 4.1)
    axes = made.subplots()
    both = pd.concat([search, baselines])
    frame_scores(axes, study, both)
    pruned: dict[str, Any] = {"marker": "v", "facecolor": "white", "s": 22}
    _scores(axes, study, search, "complete", marker="o", color=style.BLUE, label="distilled, complete")
    published = search[search["published"]]
    _scores(axes, study, published, "complete", marker="D", color=style.VERMILION, label="published point")
    _scores(axes, study, search, "pruned", edgecolor=style.BLUE, label="distilled, pruned", **pruned)
    _scores(axes, study, baselines, "complete", marker="s", color=style.ORANGE, label="student alone, complete", s=20)
    _scores(axes, study, baselines, "pruned", edgecolor=style.ORANGE, label="student alone, pruned", **pruned)
    last = max(search["number"].max(), baselines["number"].max() if len(baselines) else 0)
    _best_so_far(axes, study, search, last, color=style.BLUE, label="best so far, distilled")
    _best_so_far(axes, study, baselines, last, color=style.ORANGE, linestyle="--", label="best so far, student alone")
    mark_failed(axes, both, both["number"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    note = "; a pruned trial is drawn at its best epoch before it was stopped"
    axes.set_xlabel("trial number" + (note if (both["state"] == "pruned").any() else ""))
    axes.set(ylabel=f"{axis_label(study)}\n(best epoch)", title="Optimisation history")
    made.legend(loc="outside lower center", ncols=3)
    return made


def importances(branches: list[Branch]) -> Figure | None:
    """Draw the importance of each hyperparameter by fANOVA and PED-ANOVA with its range, one row of panels a branch."""
    drawn = [branch for branch in branches if branch.fanova and branch.ped_anova]
    if not drawn:
        return None
    bars = [len(branch.fanova or {}) for branch in drawn]
    made = style.figure(8.6, 0.9 + sum(0.34 * n + 0.75 for n in bars))
    ratios = [n + 0.8 for n in bars]
    panels = made.subplots(len(drawn), 2, squeeze=False, sharex=True, sharey="row", height_ratios=ratios)
    for row, branch in zip(panels, drawn, strict=True):
        assert branch.fanova is not None
        assert branch.ped_anova is not None
        names = short_names([p["name"] for p in branch.parameters])
        ordered = sorted(branch.fanova, key=lambda name: branch.fanova[name].value)  # type: ignore[index]
        for axes, found, colour in ((row[0], branch.fanova, style.BLUE), (row[1], branch.ped_anova, style.GREEN)):
            _bars(axes, [names[name] for name in ordered], [found[name] for name in ordered], colour)
        is_titled = len(drawn) > 1 or branch.labels
        of_n = f"(n = {branch.complete})" if is_titled else f"n = {branch.complete} complete trials"
        row[0].set_title(f"{branch.title}  {of_n}" if is_titled else of_n)
    panels[-1][0].set_xlabel("fANOVA: share of the objective's variance")
    panels[-1][1].set_xlabel("PED-ANOVA: share in reaching the best trials")
    return made


def _bars(axes: Axes, names: list[str], found: list[Importance], colour: str) -> None:
    """Draw bars with the range of each value over resamples of the trials."""
    values = [each.value for each in found]
    below_above = [[each.value - each.low for each in found], [each.high - each.value for each in found]]
    axes.barh(names, values, color=colour, height=0.62, alpha=0.85)
    axes.errorbar(values, names, xerr=below_above, fmt="none", ecolor=style.INK, elinewidth=1.1, capsize=3)
    for row, each in enumerate(found):
        axes.text(each.high + 0.02, row, f"{each.value:.2f}", va="center", fontsize=8)
    axes.set_xlim(0, 1.14)
    axes.grid(visible=False, axis="y")


def sizes(found: list[Model], study: Study) -> Figure | None:
    """Draw accuracy against the number of parameters: best trials on validation data, confirmed recipes on test data.

    None if only one student model was searched.
    """
    shown = [model for model in found if not np.isnan(model.parameters)]
    if len(shown) < 2:
        return None
    has_test = any(model.distilled_test or model.alone_test for model in shown)
    made = style.figure(4.4 if not has_test else 8.6, 3.9)
    panels = made.subplots(1, 2 if has_test else 1, squeeze=False)[0]
    looks: dict[str, dict[str, Any]] = {
        "student distilled": {"color": style.BLUE, "marker": "o"},
        "student alone": {"color": style.ORANGE, "marker": "s", "linestyle": "--"},
    }
    scale = AXIS[study.objective][1]
    for (label, look), attribute in zip(looks.items(), ("distilled", "alone"), strict=True):
        values = [(m.parameters, v * scale) for m in shown if (v := getattr(m, attribute)) is not None]
        panels[0].plot(*zip(*values, strict=True), label=label, **look) if values else None
    panels[0].set(title="Best trial of each model, one seed", ylabel=axis_label(study))
    if has_test:
        for (label, look), attribute, aside in zip(looks.items(), TESTED, (0.985, 1.015), strict=True):
            for model in shown:
                estimate = getattr(model, attribute)
                if estimate is not None:  # side by side: intervals of one model would cover one another
                    at = model.parameters * aside, 100 * estimate.mean
                    panels[1].errorbar(*at, yerr=100 * (estimate.half_width or 0), capsize=3, **look, label=label)
        panels[1].set_ylim(top=min(100.0, panels[1].get_ylim()[1]))
        panels[1].set(title="Confirmed recipes: mean and 95 % t interval", ylabel="test accuracy, %")
    for axes in panels:
        axes.set(xscale="log", xlabel="parameters")
        ticks = [model.parameters for model in shown]
        axes.set_xticks(
            ticks, [f"{model.name}\n{thousands(model.parameters)}" for model in shown], rotation=20, ha="right"
        )
        axes.minorticks_off()
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return made


def axis_label(study: Study) -> str:
    return AXIS[study.objective][0]


def _scores(axes: Axes, study: Study, trials: pd.DataFrame, state: str, *, label: str, **look: Any) -> None:
    shown = trials[(trials["state"] == state) & trials[study.objective].notna()]
    if len(shown):
        y = at_the_edge(axes, shown[study.objective] * AXIS[study.objective][1])
        axes.scatter(
            shown["number"], y, clip_on=False, **({"s": 26, "zorder": 3, "linewidths": 1.1} | look), label=label
        )


def _best_so_far(axes: Axes, study: Study, trials: pd.DataFrame, last: int, **look: Any) -> None:
    """Draw the best of the complete trials so far, up to the number of the last trial."""
    known = complete_trials(trials, study.objective)
    if len(known) == 0:
        return
    scores = known[study.objective] * AXIS[study.objective][1]
    best = scores.cummax() if study.larger_is_better else scores.cummin()
    axes.step([*known["number"], last], [*best, best.iloc[-1]], where="post", linewidth=1.5, **look)


def at_the_edge(axes: Axes, scores: pd.Series) -> pd.Series:
    """Return scores for drawing: those outside the frame are moved to its edge, so that every trial is seen."""
    return scores.clip(*sorted(axes.get_ylim()))


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
    """Set limits that keep most trials legible; scores far from the middle half are counted (see `at_the_edge`)."""
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
        note = f"{outside} trial{'s' if outside > 1 else ''} {side}: at the edge"
        axes.set_title(note, loc="right", fontsize=7.5, fontweight="normal", fontstyle="italic", color="#666666")
