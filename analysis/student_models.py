"""The student models of a search: the best trial of each, distilled and alone, and their confirmed recipes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.claims import Candidate, student_name
from analysis.frame import Study, complete_trials
from analysis.results import difference_cell, ranked, test_cell
from analysis.selection import in_unit, unit
from analysis.statistics import Estimate
from analysis.tables import MISSING, Rows, count


@dataclass(frozen=True)
class Model:
    """One student model. distilled, alone: the objective of its best trial; *_test: of its best confirmed recipe."""

    name: str
    parameters: float
    number: int | None
    distilled: float | None
    alone: float | None
    confirmed: Candidate | None
    baseline: Candidate | None

    @property
    def distilled_test(self) -> Estimate | None:
        return _test(self.confirmed)

    @property
    def alone_test(self) -> Estimate | None:
        return _test(self.baseline)


def student_models(study: Study, candidates: Sequence[Candidate]) -> list[Model]:
    """Return the student models by number of parameters; [] if the search has one only, or has fronts of them."""
    search, alone = ranked(study), ranked(study, "baselines")
    names = _names(study, search)
    if names.nunique() < 2 or study.tradeoff is not None:
        return []
    alone_names = _names(study, alone)
    sizes = {name: float(size["parameters"]) for name, size in study.description.get("models", {}).items()}
    found = []
    for name in names.dropna().unique():
        best = complete_trials(search[names == name], study.objective).head(1)
        best_alone = complete_trials(alone[alone_names == name], study.objective).head(1)
        own = [candidate for candidate in candidates if candidate.model == name]
        found.append(
            Model(
                name=name,
                parameters=sizes.get(name, math.nan),
                number=None if best.empty else int(best["number"].iloc[0]),
                distilled=None if best.empty else float(best[study.objective].iloc[0]),
                alone=None if best_alone.empty else float(best_alone[study.objective].iloc[0]),
                confirmed=next((c for c in own if c.primary), None) or next((c for c in own if c.role == "best"), None),
                baseline=next((c for c in own if c.role == "baseline"), None),
            )
        )
    return sorted(found, key=lambda model: (model.parameters, model.name))


def model_rows(study: Study, models: Sequence[Model]) -> Rows:
    """Return a row for each student model."""
    write, sign = in_unit(study), unit(study)
    return [
        {
            "student": model.name,
            "parameters": count(model.parameters),
            "best trial": MISSING if model.number is None else f"search {model.number}",
            f"its {study.objective}, {sign}": write(model.distilled),
            f"best trial alone, {sign}": write(model.alone),
            "test, distilled, %": test_cell(model.confirmed) if model.confirmed else "not confirmed",
            "test, alone, %": test_cell(model.baseline) if model.baseline else "not confirmed",
            "difference, points": difference_cell(model.confirmed) if model.confirmed else MISSING,
        }
        for model in models
    ]


def _names(study: Study, trials: pd.DataFrame) -> pd.Series:
    """Return the name of the student of each trial, None before the trial has begun."""
    recipes = (study.recipes.get(trial_id or "", {}).get("recipe") for trial_id in trials["trial_id"])
    return pd.Series([student_name(recipe) if recipe else None for recipe in recipes], index=trials.index, dtype=object)


def _test(candidate: Candidate | None) -> Estimate | None:
    return None if candidate is None or candidate.diverged else candidate.test
