"""The report's middle: every confirmed recipe, the best of the search, what each hyperparameter did."""

from typing import Any

import pandas as pd

from analysis.claims import Candidate
from analysis.frame import Study
from analysis.importance import Branch
from analysis.tables import (
    MISSING,
    bold_if,
    count,
    estimate_number,
    estimate_percent,
    estimate_points,
    markdown,
    number,
    p_value,
    percent,
    sampled,
    short_names,
)

BEST_SHOWN = 10
STATES = ("complete", "pruned", "failed", "not ended")


def candidates_section(study: Study, found: list[Candidate]) -> str:
    head = "## All confirmed recipes\n\n"
    if not found:
        return head + "None is confirmed yet.\n"
    names = [name for name in study.values.columns if any(name in candidate.values for candidate in found)]
    weighted = any(candidate.weights for candidate in found)
    table = markdown(pd.DataFrame([_candidate_row(study, candidate, names, weighted) for candidate in found]))
    family = sum(candidate.p_holm is not None for candidate in found)
    best = "highest" if study.larger_is_better else "lowest"
    corrected = f", p corrected by Holm's method over a family of {family}" if family else ""
    return (
        f"{head}{table}\n"
        f"The winner is the one of the best with the {best} mean {study.objective} over the confirming "
        "seeds, chosen before test was read: its difference is the primary claim. All other differences "
        f"are exploratory: two-sided paired t tests{corrected}.\n"
    )


def search_section(study: Study) -> str:
    head = f"## The {BEST_SHOWN} best trials of the search\n\n"
    top = ranked(study).head(BEST_SHOWN)
    if top.empty:
        return head + "The search has not begun.\n"
    values = study.values.loc[top.index].dropna(axis="columns", how="all")
    names = list(values.columns)
    short = short_names(names)
    rows = []
    for position, (_, trial) in enumerate(top.iterrows()):
        row: dict[str, Any] = {"trial": f"{trial['number']}{' (published)' if trial['published'] else ''}"}
        row |= {short[name]: sampled(values[name].iloc[position]) for name in names}
        row |= {
            "best epoch": count(trial["best_epoch"]),
            "val accuracy, %": percent(trial["val/accuracy"]),
            "val NLL, nats": number(trial["val/nll"]),
            "state": trial["state"],
        }
        rows.append(row)
    fields = study.description["study"]
    return (
        f"{head}{markdown(pd.DataFrame(rows))}\n"
        f"{fields['trials']} trials suggested by `{fields['sampler']['name']}`, pruned by "
        f"`{fields['pruner']['name']}`. Ranked by {study.objective} of the best epoch, all with seed "
        f"{fields['seed']}; ties by lower NLL, then by trial number. Only complete trials compete.\n"
    )


def ranked(study: Study) -> pd.DataFrame:
    """Complete before pruned before failed; by the objective, then lower NLL, then number."""
    search = study.stage("search")
    sign = -1.0 if study.larger_is_better else 1.0
    keys = pd.DataFrame(
        {
            "state": search["state"].map(STATES.index),
            "objective": sign * search[study.objective],
            "nll": search["val/nll"],
            "accuracy": -search["val/accuracy"],
            "number": search["number"],
        }
    )
    return search.loc[keys.sort_values(list(keys.columns)).index]


def importance_section(branches: list[Branch]) -> str:
    parts = ["## What each hyperparameter did\n"]
    for branch in branches:
        title = f"### {branch.title}\n\n" if branch.labels else ""
        parts.append(f"{title}{_importance(branch)}")
    if any(branch.shares for branch in branches):
        parts.append(EXPLAINED)
    return "\n".join(parts)


EXPLAINED = (
    "Importance is the share of the objective's variance that a parameter explains alone (fANOVA, a "
    "seeded forest over the complete trials of the search), among the values that the sampler chose; "
    "what the shares leave of 1 is interaction.\n"
)


def _importance(branch: Branch) -> str:
    if not branch.parameters:
        return "Nothing is searched here.\n"
    rows = [
        {"parameter": f"`{p['name']}`", "searched": searched_range(p)}
        | ({"importance": f"{branch.shares.get(p['name'], 0.0):.2f}"} if branch.shares else {})
        for p in sorted(branch.parameters, key=lambda p: -(branch.shares or {}).get(p["name"], 0.0))
    ]
    said = f"Over {branch.complete} complete trials." if branch.shares else f"Importance is {branch.reason}."
    return f"{markdown(pd.DataFrame(rows))}\n{said}\n"


def searched_range(parameter: dict[str, Any]) -> str:
    """1 to 20 (log); a choice's options."""
    if parameter["kind"] == "choice":
        return ", ".join(str(label) for label in parameter["choices"])
    kind = {"uniform": "", "loguniform": " (log)", "int": " (integers)", "logint": " (integers, log)"}[
        parameter["kind"]
    ]
    return f"{sampled(parameter['low'])} to {sampled(parameter['high'])}{kind}"


def _candidate_row(study: Study, candidate: Candidate, names: list[str], weighted: bool) -> dict[str, Any]:
    short = short_names(names)
    row: dict[str, Any] = {"recipe": candidate.key, "from": candidate.source}
    row |= {short[name]: sampled(candidate.values.get(name)) for name in names}
    if weighted:
        cross_entropy, distillation = candidate.weights or (None, None)
        row |= {"CE weight": sampled(cross_entropy), "distillation weight": sampled(distillation)}
    if study.objective == "val/accuracy":
        row["val accuracy, %"] = estimate_percent(candidate.validation)
    else:
        row["val NLL, nats"] = estimate_number(candidate.validation)
    row |= {
        "test accuracy, %": estimate_percent(candidate.test),
        "n": str(len(candidate.trial_ids)),
        "minus": candidate.baseline or MISSING,
        "difference, points": _difference(candidate),
        "p (Holm)": p_value(candidate.p_holm),
        "claim": "primary" if candidate.primary else "exploratory" if candidate.difference else MISSING,
    }
    return row


def _difference(candidate: Candidate) -> str:
    """Bold is for the one primary claim: an exploratory interval is not corrected for being one of many."""
    bold = candidate.primary and candidate.difference is not None and candidate.difference.decided
    return bold_if(bold, estimate_points(candidate.difference))
