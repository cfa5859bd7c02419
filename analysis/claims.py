"""What a study shows: each confirmed candidate against its baseline, and the one primary claim."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import Study
from analysis.statistics import (
    SEEDS_FOR_A_CLAIM,
    Estimate,
    Interval,
    bootstrap_over_images,
    clopper_pearson,
    holm,
    mean_estimate,
    paired_differences,
    paired_p_value,
)


@dataclass(frozen=True)
class Candidate:
    """A confirmed recipe over its seeds. difference: test accuracy minus its baseline's, paired by seed."""

    key: str
    role: str
    baseline: str | None
    source: str
    values: Mapping[str, Any]
    weights: tuple[float, float] | None
    trial_ids: Mapping[int, str]
    planned: int
    model: str
    parameters: float
    validation: Estimate | None
    test: Estimate | None
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    primary: bool = False


@dataclass(frozen=True)
class Single:
    """One run, the teacher: no seeds to average over, so the binomial interval of its test images."""

    model: str
    trial_id: str
    parameters: float
    validation: float
    test: float
    test_images: float
    interval: Interval | None


def candidates(study: Study) -> list[Candidate]:
    """In the order of confirmation; differences with Holm's correction over all but the primary one."""
    confirm = study.stage("confirm")
    winner = (study.winner or {}).get("candidate")
    groups = {str(key): group for key, group in confirm.groupby("candidate", sort=False)}
    tests = {key: _by_seed(group, "test/accuracy") for key, group in groups.items()}
    compared = []
    for key, group in groups.items():
        candidate = _candidate(study, key, group)
        if candidate.baseline is not None and candidate.baseline in tests:
            differences = paired_differences(tests[key], tests[candidate.baseline])
            candidate = replace(candidate, difference=mean_estimate(differences), p=paired_p_value(differences))
        compared.append(replace(candidate, primary=key == winner))
    corrected = holm([None if candidate.primary else candidate.p for candidate in compared])
    return [replace(candidate, p_holm=p) for candidate, p in zip(compared, corrected, strict=True)]


def find(found: list[Candidate], key: str | None) -> Candidate | None:
    return next((candidate for candidate in found if candidate.key == key), None)


def teachers(study: Study) -> list[Single]:
    """The trained teachers, the winner's first; one from a file has no trial and so no row."""
    rows = study.stage("teacher")
    read_by_winner = _teacher_of(study, (study.winner or {}).get("trial_id"))
    found = [_single(study, row) for _, row in rows[rows["trial_id"].notna()].iterrows()]
    return sorted(found, key=lambda single: single.trial_id != read_by_winner)


def verdict(difference: Estimate | None) -> str:
    """beat, lost to, or undecided with the reason."""
    if difference is None:
        return "undecided: no seed has both measured"
    if difference.n < SEEDS_FOR_A_CLAIM:
        seeds = "1 seed is" if difference.n == 1 else f"{difference.n} seeds are"
        return f"undecided: {seeds} too few, a claim needs {SEEDS_FOR_A_CLAIM}"
    if difference.interval is None:
        return f"undecided: all {difference.n} differences are equal, which gives no interval"
    if difference.interval.contains_zero:
        return "undecided: the interval contains 0"
    return "beat" if difference.mean > 0 else "lost to"


def bootstrap(study: Study, winner: Candidate, baseline: Candidate) -> tuple[Interval, int, int] | None:
    """(interval, images, seeds); None unless every common seed kept its predictions of the same images."""
    seeds = sorted(winner.trial_ids.keys() & baseline.trial_ids.keys())
    rows = [[_right(study, candidate.trial_ids[seed]) for seed in seeds] for candidate in (winner, baseline)]
    known = [right_N for row in rows for right_N in row if right_N is not None]
    if not seeds or len(known) < 2 * len(seeds) or len({right_N.size for right_N in known}) > 1:
        return None
    interval = bootstrap_over_images(rows[0], rows[1])  # type: ignore[arg-type]
    return None if interval is None else (interval, known[0].size, len(seeds))


def _candidate(study: Study, key: str, group: pd.DataFrame) -> Candidate:
    first = group.iloc[0]
    about = study.recipes.get(first["trial_id"], {})
    recipe = about.get("recipe")
    complete = group[(group["state"] == "complete") & group["test/accuracy"].notna()]
    return Candidate(
        key=key,
        role=str(first["role"]),
        baseline=None if pd.isna(first["baseline"]) else str(first["baseline"]),
        source=f"{first['source_stage']} {first['source_number']:.0f}" if not pd.isna(first["source_number"]) else "",
        values=study.values.loc[first.name].dropna().to_dict(),  # type: ignore[call-overload]
        weights=about.get("weights"),
        trial_ids={int(row["seed"]): row["trial_id"] for row in complete.to_dict("records")},
        planned=len(group),
        model=_student(recipe),
        parameters=float(group["parameters"].dropna().iloc[0]) if group["parameters"].notna().any() else math.nan,
        validation=mean_estimate(list(_by_seed(group, study.objective).values())),
        test=mean_estimate(list(_by_seed(group, "test/accuracy").values())),
    )


def _by_seed(group: pd.DataFrame, metric: str) -> dict[int, float]:
    known = group[(group["state"] == "complete") & group[metric].notna()]
    return {int(seed): float(value) for seed, value in zip(known["seed"], known[metric], strict=True)}


def _single(study: Study, row: pd.Series) -> Single:
    recipe = study.recipes.get(row["trial_id"], {}).get("recipe", {})
    test, images = row["test/accuracy"], row["test_images"]
    measured = not math.isnan(test) and not math.isnan(images)
    return Single(
        model=_student(recipe),
        trial_id=row["trial_id"],
        parameters=row["parameters"],
        validation=row["val/accuracy"],
        test=test,
        test_images=images,
        interval=clopper_pearson(round(test * images), int(images)) if measured else None,
    )


def _student(recipe: Mapping[str, Any] | None) -> str:
    """The model's name, with a mark on what was allowed though it teaches little."""
    student = (recipe or {}).get("student") or {}
    mark = " (random weights, frozen)" if student.get("allow_random_frozen") else ""
    return str(student.get("model", "unknown")) + mark


def _teacher_of(study: Study, trial_id: str | None) -> str | None:
    return ((study.recipes.get(trial_id or "") or {}).get("teacher") or {}).get("trial_id")


def _right(study: Study, trial_id: str) -> np.ndarray | None:
    predictions = study.test_predictions(trial_id)
    return None if predictions is None else predictions[0].argmax(axis=1) == predictions[1]
