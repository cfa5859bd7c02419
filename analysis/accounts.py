"""The report's end: trials counted, idle knobs, commands; last what depends on time and machine."""

import json
import shlex
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis.frame import NOT_ENDED, STAGES, TRAINING, Study, flatten
from analysis.tables import MISSING, count, listed, markdown, missing, one_line, sampled
from kdtrain.storage.folder import Row

STATES = ("complete", "pruned", "failed", "not ended")


def counts_section(study: Study) -> str:
    rows = [
        {"stage": stage, "planned": len(trials)} | {state: (trials["state"] == state).sum() for state in STATES}
        for stage in STAGES
        if len(trials := study.stage(stage))
    ]
    if not rows:
        return "## Trials counted\n\nNothing is planned yet.\n"
    reasons = _reasons(study)
    why = f"\n{markdown(pd.DataFrame(reasons))}" if reasons else "\nNothing was pruned, nothing failed.\n"
    return f"## Trials counted\n\n{markdown(pd.DataFrame(rows))}{why}"


def stages_ended(study: Study) -> str:
    """teacher 1 of 1, search 3 of 24 ended"""
    ended = []
    for stage in STAGES:
        trials = study.stage(stage)
        planned = max(len(trials), study.description["study"]["trials"] if stage == "search" else 0)
        if planned:
            ended.append(f"{stage} {(trials['state'] != NOT_ENDED).sum()} of {planned}")
    return f"{', '.join(ended)} ended"


def idle_knobs_section(study: Study) -> str:
    """Two recipes of one seed with equal metrics in every epoch: what differs between them did nothing."""
    head = "## Knobs that do nothing\n\n"
    found = idle_knobs(study)
    if not found:
        return head + "None found: no two different recipes of one seed have identical metrics in every epoch.\n"
    return head + "".join(
        f"- {first} and {second} have identical metrics in every epoch, though they differ in {differing}.\n"
        for first, second, differing in found
    )


def idle_knobs(study: Study) -> list[tuple[str, str, str]]:
    """(trial, trial, what differs in their recipes), each later trial with the first that it equals."""
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
            found.append((names[first], names[trial_id], _differing(flatten(other), flatten(recipe))))
    return found


def commands_section(study: Study, *, has_winner: bool) -> str:
    commands = [f"python -m kdtrain results/{study.name}/best.yaml --results repeat"] if has_winner else []
    what = "The first repeats the best recipe, the second the sweep" if has_winner else "This repeats the sweep"
    return (
        "## To repeat it\n\n```sh\n" + "\n".join([*commands, continue_command(study)]) + "\n```\n\n"
        f"{what}: it skips what is in the results folder and continues what was cut off. From the "
        "repository's root; with another results folder put its name for `results` and give `--results`.\n"
    )


def continue_command(study: Study) -> str:
    """With --trials and --seed, which the file may not say."""
    fields = study.description["study"]
    words = ["python", "run_sweep.py", study.description["file"]]
    words += [word for override in study.description.get("overrides", []) for word in ("--set", override)]
    return shlex.join([*words, "--trials", str(fields["trials"]), "--seed", str(fields["seed"])])


def _skipped(outcomes: list[Row]) -> dict[str, str]:
    """Of trainings in float16 alone: the steps that overflowed."""
    in_half = [outcome for outcome in outcomes if "skipped_steps" in outcome]
    return {"float16 steps skipped": count(_total(in_half, "skipped_steps"))} if in_half else {}


def _teacher_accounts(outcomes: list[Row]) -> dict[str, str]:
    """What the teachers said: images asked about, those that a network answered, and what reading the others saved."""
    asked = _total(outcomes, "teacher_images")
    known = [outcome for outcome in outcomes if outcome.get("teacher_images_computed") is not None]
    if not asked or not known:
        return {"teacher forwards, images": count(asked)}
    computed = _total(known, "teacher_images_computed")
    saved = max(_total(known, "teacher_images") - computed, 0.0)
    checked, seconds = _total(known, "teacher_images_checked"), _total(known, "teacher_forward_seconds")
    timed = seconds > 0 and all(_on_cpu(outcome) for outcome in known)  # a GPU still runs when its time is taken
    each = seconds / (computed + checked) if timed else 0.0
    return {
        "teacher's answers, images": count(asked),
        "of them computed": count(computed) + (f" (in {duration(computed * each)})" if timed else ""),
        "of them read, not computed again": count(saved) + (f" (about {duration(saved * each)})" if timed else ""),
        "computed once more, to check what was read": count(checked),
    }


def _on_cpu(outcome: Row) -> bool:
    return str(outcome.get("device", "")).startswith("cpu")


CACHES = {
    "teacher_cache_off": "trainings that asked live, though they were to read",
    "image_cache_off": "trainings that decoded images themselves, though they were to read",
}


def _caches_off(outcomes: list[Row]) -> dict[str, str]:
    reasons = {said: [o[name] for o in outcomes if o.get(name)] for name, said in CACHES.items()}
    return {said: f"{len(each)}: {_distinct(each)}" for said, each in reasons.items() if each}


def _over_floor(outcomes: list[Row]) -> dict[str, str]:
    """Training time over what is left of it without teachers and views: what ready targets and batches would cost. Not
    told of a GPU, which still runs when its time is taken."""
    known = [outcome for outcome in outcomes if outcome.get("views_seconds") is not None and _on_cpu(outcome)]
    seconds = _total(known, "seconds")
    floor = seconds - _total(known, "teacher_seconds") - _total(known, "views_seconds")
    if not known or floor <= 0:
        return {}
    return {"of it without teachers and views (the floor)": f"{duration(floor)}: x {seconds / floor:.2f}"}


def cost_section(study: Study) -> str:
    """Alone in naming times and machines: all above it is equal byte for byte when the study is repeated."""
    outcomes = list(study.outcomes.values())
    seconds, images = _total(outcomes, "seconds"), _total(outcomes, "images")
    peaks = [outcome["peak_memory_bytes"] for outcome in outcomes if outcome.get("peak_memory_bytes")]
    lines = {
        "trainings": count(sum(bool(outcome.get("epochs")) for outcome in outcomes)),
        "epochs": count(_total(outcomes, "epochs")),
        "images seen in training": count(images),
        **_teacher_accounts(outcomes),
        **_caches_off(outcomes),
        **_skipped(outcomes),
        "wall time of the study": duration(wall_seconds(study)),
        "time in training, summed over trials": duration(seconds),
        **_over_floor(outcomes),
        "images a second of training": f"{images / seconds:,.0f}".replace(",", " ") if seconds else MISSING,
        "peak memory of a trial": f"{max(peaks) / 2**20:,.0f} MiB".replace(",", " ") if peaks else MISSING,
        "device": _distinct(outcome.get("device") for outcome in outcomes),
        "threads a worker": _distinct(outcome.get("threads") for outcome in outcomes),
        "workers": _distinct(outcome.get("workers") for outcome in outcomes),
        "git commit": _distinct(outcome.get("git_commit") for outcome in outcomes),
        "versions": _distinct(_versions(outcome.get("versions") or {}) for outcome in outcomes),
        "results folder": f"`{study.folder.parent}`",
    }
    opened = [event.get("command") for event in study.record if event["event"] == "opened"]
    commands = "\n".join(f"{i}. `{command}`" for i, command in enumerate((c for c in opened if c), start=1))
    table = markdown(pd.DataFrame({"what": list(lines), "value": list(lines.values())}))
    started = f"\nStarted by:\n\n{commands}\n" if commands else ""
    return (
        f"## Cost and versions\n\n{table}\n"
        "Counted over every training that the study rests on, those that it found in the store included; "
        f"the wall time is that of the study itself, from each start to its last event.\n{started}"
    )


def wall_seconds(study: Study) -> float:
    """Only while the driver was open: from each `opened` to the last event before the next."""
    times = [float(event["time"]) for event in study.record]
    starts = [i for i, event in enumerate(study.record) if event["event"] == "opened"]
    return sum(times[end - 1] - times[start] for start, end in pairwise([*starts, len(times)]))


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _reasons(study: Study) -> list[dict[str, Any]]:
    """Failures by their reason, prunings by the epoch they ended at."""
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
        {
            "stage": stage,
            "state": state,
            "why": why,
            "how many": len(group),
            "trials": listed(group["number"]),
        }
        for (stage, state, why), group in grouped
    ]
    return sorted(rows, key=lambda row: (order[row["stage"], row["state"]], _epoch_first(row["why"])))


def _epoch_first(why: str) -> tuple[int, str]:
    last = why.rsplit(" ", 1)[-1]
    return (int(last), "") if why.startswith("after epoch") and last.isdigit() else (-1, why)


def _differing(first: dict[str, Any], second: dict[str, Any]) -> str:
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    return listed(f"`{name}` ({sampled(first.get(name))} and {sampled(second.get(name))})" for name in names) or MISSING


def _total(outcomes: list[dict[str, Any]], name: str) -> float:
    return sum(outcome.get(name) or 0 for outcome in outcomes)


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(sorted({str(value) for value in values if value not in (None, "")})) or MISSING
