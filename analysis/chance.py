"""Networks that have learned nothing: they are not better than the most frequent class of the validation images."""

from typing import Any

import pandas as pd

from analysis.frame import Study, complete_trials
from analysis.tables import listed
from kdtrain.trials.records import chance_remark


def chance_remarks(study: Study) -> list[str]:
    """Return a sentence for each teacher, each searched stage and each confirmed recipe that has learned nothing.

    A stage is named if none of its complete trials has learned anything, a recipe if one of its runs has not.
    """
    found = []
    teachers = study.stage("teacher")
    recipes = [study.recipes.get(trial_id, {}).get("recipe", {}) for trial_id in teachers["trial_id"]]
    models = [recipe.get("student", {}).get("model", "unknown") for recipe in recipes]
    for i, (model, recipe) in enumerate(zip(models, recipes, strict=True)):
        seed = f", seed {recipe.get('seed')}," if models.count(model) > 1 else ""
        found += [f"The teacher {model}{seed} is {remark}." for remark in _remarks(study, teachers.iloc[[i]]).values()]
    for stage in ("baselines", "search"):
        trials = complete_trials(study.stage(stage), "val/accuracy")
        remarks = _remarks(study, trials)
        if remarks and len(remarks) == len(trials):
            remark = next(iter(remarks.values()))
            found.append(f"Stage {stage}: none of the {len(trials)} complete trials has learned: each is {remark}.")
    for key, runs in study.stage("confirm").groupby("candidate", sort=False):
        remarks = _remarks(study, runs)
        if remarks:
            seeds = listed(f"{runs.loc[row, 'seed']:.0f}" for row in remarks)
            which = f"{len(remarks)} of {len(runs)} runs (seed{'s' * (len(remarks) > 1)} {seeds}) are"
            found.append(f"{str(key).capitalize()}: {which} {next(iter(remarks.values()))}.")
    return found


def _remarks(study: Study, trials: pd.DataFrame) -> dict[Any, str]:
    """Return the remark about each trial that has learned nothing, by its index."""
    complete = complete_trials(trials, "val/accuracy")
    data = [study.recipes.get(trial_id, {}).get("data") or {} for trial_id in complete["trial_id"]]
    mpa = complete["val/mpa"].astype(object).where(complete["val/mpa"].notna(), None)
    best = [{"val/accuracy": own, "val/mpa": mean} for own, mean in zip(complete["val/accuracy"], mpa, strict=True)]
    told = map(chance_remark, best, data)
    return {row: remark for row, remark in zip(complete.index, told, strict=True) if remark is not None}
