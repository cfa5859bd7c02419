"""How a study went: its trials counted with the reasons of failures, hyperparameters without effect, its commands."""

import shlex
from typing import Any

from analysis.frame import BROKEN, NOT_ENDED, TRAINING, Study, flatten
from analysis.tables import MISSING, Rows, count, listed, missing, one_line, sampled
from kdtrain.trials.records import STAGES

STATES = ("complete", "pruned", "failed", BROKEN, NOT_ENDED)


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
    grouped: dict[tuple[Any, ...], list[int]] = {}
    for row in ended.to_dict("records"):
        at_epoch = row["state"] == "pruned" and not missing(row["epochs"])
        why = f"after epoch {count(row['epochs'])}" if at_epoch else one_line(row["reason"])
        order = (STAGES.index(row["stage"]), row["state"], row["epochs"] if at_epoch else -1, why)
        grouped.setdefault(order, []).append(row["number"])
    return [
        {"stage": STAGES[stage], "state": state, "reason": why, "count": len(numbers), "trials": listed(numbers)}
        for (stage, state, _, why), numbers in sorted(grouped.items())
    ]


def broken(study: Study) -> Rows:
    """Return a row for each job that broke: its reason, and the file of its traceback in the study's folder."""
    return [
        {
            "stage": row["stage"], "trial": row["number"], "reason": one_line(row["reason"]),
            "traceback": MISSING if missing(row["traceback"]) else f"`{row['traceback']}`",
        }
        for row in study.trials[study.trials["state"] == BROKEN].to_dict("records")
    ]  # fmt: skip


def stages_ended(study: Study) -> str:
    """Return `teacher 1 of 1, search 3 of 24 ended`."""
    planned = {stage: len(study.stage(stage)) for stage in STAGES}
    planned["search"] = max(planned["search"], study.description["study"]["trials"])
    ended = {stage: (study.stage(stage)["state"] != NOT_ENDED).sum() for stage in STAGES}
    return f"{', '.join(f'{stage} {ended[stage]} of {number}' for stage, number in planned.items() if number)} ended"


def equal_trials(study: Study) -> Rows:
    """Return pairs of trials that differ in hyperparameters without effect: each trial with the first equal one.

    Both have one seed and equal metrics in every epoch; `differing` is what differs between their recipes.
    """
    names = {
        row["trial_id"]: f"{row['stage']} {row['number']}"
        for row in study.trials.iloc[::-1].to_dict("records")
        if row["stage"] in TRAINING
    }
    metrics = [column for column in study.epochs.columns if "/" in column]
    first_of: dict[tuple[Any, bytes], str] = {}
    found = []
    rows = study.epochs[["epoch", *metrics]].to_numpy(float) + 0.0  # so that -0.0 is equal to 0.0
    of_trial = study.epochs.groupby("trial_id", sort=False).indices if metrics else {}
    for trial_id, own in ((str(key), own) for key, own in of_trial.items()):
        recipe = study.recipes.get(trial_id, {}).get("recipe", {})
        key = (recipe.get("seed"), rows[own].tobytes())
        first = first_of.setdefault(key, trial_id)
        if first != trial_id:
            other = study.recipes.get(first, {}).get("recipe", {})
            differing = _differing(flatten(other), flatten(recipe))
            found.append({"first": names[first], "second": names[trial_id], "differing": differing})
    return found


def continue_command(study: Study) -> str:
    """Return the command, or the call of the Python API, that continues the sweep: the newest one that started it."""
    given = commands(study)
    if given:
        return given[-1]
    fields = study.description["study"]
    words = ["kdtrain", "sweep", study.description["file"]]
    words += [word for override in study.description.get("overrides", []) for word in ("--set", override)]
    return shlex.join([*words, "--trials", str(fields["trials"]), "--seed", str(fields["seed"])])


def train_command(study: Study) -> str:
    """Return the command that trains the winner again, with the data that the sweep was started with."""
    named = [event.get("data") for event in study.record if event["event"] == "opened"]
    data = ["--data", str(named[-1])] if named and named[-1] else []
    return shlex.join(["kdtrain", "train", str(study.folder / "best.yaml"), "--results", "repeat", *data])


def commands(study: Study) -> list[str]:
    """Return the commands that started the study."""
    return [str(event["command"]) for event in study.record if event["event"] == "opened" and event.get("command")]


def _differing(first: dict[str, Any], second: dict[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    return listed(f"`{name}` ({sampled(first.get(name))} and {sampled(second.get(name))})" for name in names) or MISSING
