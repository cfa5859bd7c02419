"""Networks that have learned nothing: they are not better than the most frequent class of the validation images."""

import pandas as pd

from analysis.frame import Study, complete_trials
from kdtrain.trials.records import chance_remark


def chance_remarks(study: Study) -> list[str]:
    """Return a sentence for each teacher, each searched stage and each confirmed recipe that has learned nothing.

    A stage is named if none of its complete trials has learned anything, a recipe if one of its runs has not.
    """
    found = []
    for _, teacher in study.stage("teacher").iterrows():
        remarks = _remarks(study, teacher.to_frame().T)
        model = study.recipes.get(teacher["trial_id"], {}).get("recipe", {}).get("student", {}).get("model", "unknown")
        found += [f"The teacher {model} is {remark}." for remark in remarks]
    for stage in ("baselines", "search"):
        trials = complete_trials(study.stage(stage), "val/accuracy")
        remarks = _remarks(study, trials)
        if remarks and len(remarks) == len(trials):
            found.append(f"Stage {stage}: none of the {len(trials)} complete trials has learned: each is {remarks[0]}.")
    for key, runs in study.stage("confirm").groupby("candidate", sort=False):
        remarks = _remarks(study, runs)
        if remarks:
            found.append(f"{str(key).capitalize()}: {len(remarks)} of {len(runs)} runs are {remarks[0]}.")
    return found


def _remarks(study: Study, trials: pd.DataFrame) -> list[str]:
    complete = complete_trials(trials, "val/accuracy")
    data = [study.recipes.get(trial_id, {}).get("data") or {} for trial_id in complete["trial_id"]]
    mpa = complete["val/mpa"].astype(object).where(complete["val/mpa"].notna(), None)
    best = [{"val/accuracy": own, "val/mpa": mean} for own, mean in zip(complete["val/accuracy"], mpa, strict=True)]
    told = map(chance_remark, best, data)
    return [remark for remark in told if remark is not None]
