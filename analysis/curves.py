"""Pictures of what was trained: learning curves of the confirming runs, outputs at several temperatures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.claims import Candidate, Single
from analysis.frame import Study
from analysis.plots import AXIS
from analysis.statistics import mean_estimate

CLASSES_DRAWN = 20


def learning_curves(
    study: Study, winner: Candidate, baseline: Candidate, teacher: Single | None
) -> Figure | None:
    """Mean over the confirming seeds with its 95 % t interval: the winner against its baseline."""
    if not winner.trial_ids or not baseline.trial_ids:
        return None
    made = style.figure(8.6, 3.7)
    for axes, metric in zip(made.subplots(1, 2), ("val/accuracy", "val/nll"), strict=True):
        label, factor = AXIS[metric]
        series = (
            (baseline, style.ORANGE, "--", "student alone"),
            (winner, style.BLUE, "-", "student distilled"),
        )
        means = [
            _curve(axes, study, c, metric, factor, colour, line, f"{name}, n = {len(c.trial_ids)}")
            for c, colour, line, name in series
        ]
        if teacher is not None and metric == "val/accuracy" and not np.isnan(teacher.validation):
            axes.axhline(
                100 * teacher.validation,
                color=style.INK,
                linewidth=1.0,
                linestyle=":",
                label="teacher, best epoch",
            )
            means.append(np.array([100 * teacher.validation]))
        _without_the_first_epochs(axes, np.concatenate(means), larger_is_better=metric == "val/accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=label)
        if metric == "val/accuracy":
            made.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    made.suptitle(
        "Learning curves of the confirming runs: mean and its 95 % t interval over seeds",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return made


def softened(arrays: Mapping[str, Any]) -> Figure:
    """One image, and the answers of teacher and student at each temperature; of many classes the top."""
    teacher_MK, student_MK = np.asarray(arrays["softened_teacher"]), np.asarray(arrays["softened_student"])
    temperatures = np.asarray(arrays["softened_temperatures"])
    label = int(arrays["softened_label"])
    classes = np.sort(np.argsort(-teacher_MK[0], kind="stable")[:CLASSES_DRAWN])
    wide = 3.4 if len(classes) <= 12 else 5.0
    made = style.figure(2.5 + wide * len(temperatures), 3.1)
    picture, *panels = made.subplots(
        1, 1 + len(temperatures), width_ratios=[2.2, *[wide] * len(temperatures)]
    )
    picture.imshow(arrays["softened_image"], cmap="gray", interpolation="nearest")
    picture.set_title(f"label: class {label}")
    picture.set_axis_off()
    for axes, temperature, teacher_K, student_K in zip(
        panels, temperatures, teacher_MK, student_MK, strict=True
    ):
        at = np.arange(len(classes))
        axes.bar(at - 0.21, teacher_K[classes], width=0.4, color=style.BLUE, label="teacher")
        axes.bar(at + 0.21, student_K[classes], width=0.4, color=style.ORANGE, label="student distilled")
        axes.set_xticks(at, [str(c) for c in classes])
        axes.set_ylim(0, 1.08 * max(teacher_K.max(), student_K.max()))
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="class", title=f"T = {temperature:.3g}")
    panels[0].set_ylabel("probability")
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return made


def _curve(
    axes: Axes,
    study: Study,
    candidate: Candidate,
    metric: str,
    factor: float,
    colour: str,
    line: str,
    label: str,
) -> np.ndarray:
    rows = study.epochs[study.epochs["trial_id"].isin(list(candidate.trial_ids.values()))]
    by_epoch = rows.pivot(index="epoch", columns="trial_id", values=metric).dropna().astype(float) * factor
    estimates = [estimate for _, row in by_epoch.iterrows() if (estimate := mean_estimate(row.tolist()))]
    mean = np.array([estimate.mean for estimate in estimates])
    half = np.array([estimate.half_width or 0.0 for estimate in estimates])
    axes.fill_between(by_epoch.index, mean - half, mean + half, color=colour, alpha=0.22, linewidth=0)
    axes.plot(by_epoch.index, mean, color=colour, linestyle=line, label=label)
    return mean


def _without_the_first_epochs(axes: Axes, means: np.ndarray, *, larger_is_better: bool) -> None:
    """Scales to where the curves end up: an untrained network's first epochs would flatten the rest."""
    if len(means) < 8:
        return
    low, high = np.quantile(means, [0.08, 1.0] if larger_is_better else [0.0, 0.92])
    margin = 0.12 * max(high - low, 1e-9)
    axes.set_ylim(low - margin, high + margin)
