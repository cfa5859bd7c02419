"""How a study went: its trials counted with the reasons of failures, hyperparameters without effect, its commands."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.frame import NOT_ENDED, STAGES, TRAINING, Study, flatten
from analysis.tables import MISSING, Rows, count, listed, missing, one_line, sampled

STATES = ("complete", "pruned", "failed", "not ended")


@dataclass(frozen=True)
class Equal:
    """Two trials of one seed with equal metrics in every epoch, and what differs between their recipes."""

    first: str
    second: str
    differing: str


def trial_counts(study: Study) -> Rows:
    """Return the number of trials of each stage, by state."""
    return [
        {"stage": stage, "planned": len(trials)} | {state: (trials["state"] == state).sum() for state in STATES}
        for stage in STAGES
        if len(trials := study.stage(stage))
    ]


def reasons(study: Study) -> Rows:
    """Return failures by their reason, and prunings by the epoch at which they ended."""
    ended = study.trials[study.trials["state"].isin(["pruned", "failed"])]
    why = [
        f"after epoch {count(row['epochs'])}"
        if row["state"] == "pruned" and not missing(row["epochs"])
        else one_line(row["reason"])
        for row in ended.to_dict("records")
    ]
    grouped = ended.assign(why=pd.Series(why, index=ended.index, dtype=object)).groupby(
        ["stage", "state", "why"], sort=False
    )
    order = {(stage, state): (i, state) for i, stage in enumerate(STAGES) for state in ("failed", "pruned")}
    rows = [
        {"stage": stage, "state": state, "reason": why, "count": len(group), "trials": listed(group["number"])}
        for (stage, state, why), group in grouped
    ]
    return sorted(rows, key=lambda row: (order[row["stage"], row["state"]], _by_epoch(str(row["reason"]))))


def stages_ended(study: Study) -> str:
    """Return `teacher 1 of 1, search 3 of 24 ended`."""
    ended = []
    for stage in STAGES:
        trials = study.stage(stage)
        planned = max(len(trials), study.description["study"]["trials"] if stage == "search" else 0)
        if planned:
            ended.append(f"{stage} {(trials['state'] != NOT_ENDED).sum()} of {planned}")
    return f"{', '.join(ended)} ended"


def equal_trials(study: Study) -> list[Equal]:
    """Return pairs of trials that differ in hyperparameters without effect: each trial with the first equal one."""
    names = {
        row["trial_id"]: f"{row['stage']} {row['number']}"
        for row in study.trials.iloc[::-1].to_dict("records")
        if row["stage"] in TRAINING
    }
    metrics = [column for column in study.epochs.columns if "/" in column]
    first_of: dict[tuple[Any, str], str] = {}
    found = []
    epochs = {str(key): rows for key, rows in study.epochs.groupby("trial_id", sort=False)} if metrics else {}
    for trial_id, rows in epochs.items():
        recipe = study.recipes.get(trial_id, {}).get("recipe", {})
        key = (recipe.get("seed"), json.dumps(rows[["epoch", *metrics]].astype(object).values.tolist()))
        first = first_of.setdefault(key, trial_id)
        if first != trial_id:
            other = study.recipes.get(first, {}).get("recipe", {})
            found.append(Equal(names[first], names[trial_id], _differing(flatten(other), flatten(recipe))))
    return found


def continue_command(study: Study) -> str:
    """Return the command that continues the sweep, with --trials and --seed, which its file may leave out."""
    fields = study.description["study"]
    words = ["kdtrain", "sweep", study.description["file"]]
    words += [word for override in study.description.get("overrides", []) for word in ("--set", override)]
    return shlex.join([*words, "--trials", str(fields["trials"]), "--seed", str(fields["seed"])])


def last_command(study: Study) -> str:
    """Return the command that was given last, with its folders."""
    given = [event["command"] for event in study.record if event["event"] == "opened" and event.get("command")]
    return str(given[-1]) if given else continue_command(study)


def _by_epoch(why: str) -> tuple[int, str]:
    last = why.rsplit(" ", 1)[-1]
    return (int(last), "") if why.startswith("after epoch") and last.isdigit() else (-1, why)


def _differing(first: dict[str, Any], second: dict[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    return listed(f"`{name}` ({sampled(first.get(name))} and {sampled(second.get(name))})" for name in names) or MISSING
