"""The tables of confirmed recipes, of the best trials of the search, and of the hyperparameters' importance."""

from typing import Any

import pandas as pd

from analysis.accounts import STATES
from analysis.claims import Candidate
from analysis.frame import Study
from analysis.importance import Branch, Importance
from analysis.references.measured import measured_rows
from analysis.tables import (
    MISSING,
    Rows,
    bold_if,
    count,
    estimate_number,
    estimate_percent,
    estimate_points,
    number,
    p_value,
    percent,
    sampled,
    short_names,
)

FRACTIONS = {"val/accuracy": "val accuracy, %", "val/mpa": "val MPA, %", "val/ece": "val ECE, %"}
"""The columns of objectives that are shown in percent."""


def confirmed(study: Study, candidates: list[Candidate]) -> Rows:
    """Return a row for each confirmed recipe, with its searched values and its difference to its baseline."""
    names = [name for name in study.values.columns if any(name in candidate.values for candidate in candidates)]
    weighted = any(candidate.weights for candidate in candidates)
    return [_candidate_row(study, candidate, names, weighted) for candidate in candidates]


def unseen_classes(study: Study, candidates: list[Candidate]) -> Rows:
    """Return two rows for each confirmed recipe with classes of which no label was seen: as it is, and with their bias.

    The bias is the best one on validation, see `analysis.unseen_classes`.
    """
    if not any((recipe.get("data") or {}).get("unseen_classes") for recipe in study.recipes.values()):
        return []
    return [
        {
            "recipe": row.key,
            "test accuracy, %": row.cell("test/accuracy"),
            "unseen classes recognised, %": estimate_percent(row.estimate("test/unseen")),
            "bias": "0" if (bias := row.estimate("bias")) is None else f"{bias.mean:+.2f}",
            "n": str(row.n),
        }
        for row in measured_rows(study, candidates, ())
        if row.unseen
    ]


def test_cell(candidate: Candidate) -> str:
    """Return the test accuracy over the seeds; a recipe with a non-finite seed has none."""
    if candidate.diverged:
        return f"diverged in {candidate.diverged} of {candidate.planned}"
    return estimate_percent(candidate.test)


def difference_cell(candidate: Candidate) -> str:
    """Return the difference to the baseline; there is none if one of the two has a non-finite seed."""
    is_cut = candidate.difference is not None and candidate.difference.diverged
    return MISSING if is_cut else estimate_points(candidate.difference)


def best_trials(study: Study, most: int) -> Rows:
    """Return a row for each of the best trials of the search, at most `most`."""
    top = ranked(study).head(most)
    values = study.values.loc[top.index].dropna(axis="columns", how="all")
    short = short_names(list(values.columns))
    return [
        {"trial": f"{trial['number']}{' (published)' if trial['published'] else ''}"}
        | {short[name]: sampled(values[name].iloc[position]) for name in values.columns}
        | {
            "best epoch": count(trial["best_epoch"]),
            "val accuracy, %": percent(trial["val/accuracy"]),
            **{
                label: percent(trial[name])
                for name, label in FRACTIONS.items()
                if name == study.objective != "val/accuracy"
            },
            "val NLL, nats": number(trial["val/nll"]),
            "state": trial["state"],
        }
        for position, (_, trial) in enumerate(top.iterrows())
    ]


def ranked(study: Study, stage: str = "search") -> pd.DataFrame:
    """Return the trials of a search: complete, pruned, failed; each by the objective, then lower NLL, then number."""
    search = study.stage(stage)
    sign = -1.0 if study.larger_is_better else 1.0
    state, objective = search["state"].map(STATES.index), sign * search[study.objective]
    keys = pd.concat([state, objective, search["val/nll"], -search["val/accuracy"], search["number"]], axis=1)
    keys.columns = pd.RangeIndex(5)
    return search.loc[keys.sort_values(list(keys.columns)).index]


def hyperparameters(branch: Branch) -> Rows:
    """Return a row for each hyperparameter of a branch, the most important first."""
    fanova, ped_anova = branch.fanova or {}, branch.ped_anova or {}
    ordered = sorted(branch.parameters, key=lambda p: -fanova[p["name"]].value) if fanova else branch.parameters
    return [
        {"hyperparameter": f"`{p['name']}`", "searched": searched_range(p)}
        | {
            name: _importance(found[p["name"]])
            for name, found in (("fANOVA", fanova), ("PED-ANOVA", ped_anova))
            if found
        }
        for p in ordered
    ]


def _importance(found: Importance) -> str:
    return f"{found.value:.2f} [{found.low:.2f} to {found.high:.2f}]"


def searched_range(parameter: dict[str, Any]) -> str:
    """Return `1 to 20 (log)`, or the options of a choice."""
    if parameter["kind"] == "choice":
        return ", ".join(str(label) for label in parameter["choices"])
    kinds = {"uniform": "", "loguniform": " (log)", "int": " (integers)", "logint": " (integers, log)"}
    return f"{sampled(parameter['low'])} to {sampled(parameter['high'])}{kinds[parameter['kind']]}"


def _candidate_row(study: Study, candidate: Candidate, names: list[str], weighted: bool) -> dict[str, Any]:
    short = short_names(names)
    row: dict[str, Any] = {"recipe": candidate.key, "from": candidate.source}
    row |= {short[name]: sampled(candidate.values.get(name)) for name in names}
    if weighted:
        cross_entropy, distillation = candidate.weights or (None, None)
        row |= {"CE weight": sampled(cross_entropy), "distillation weight": sampled(distillation)}
    shown = estimate_percent if study.objective in FRACTIONS else estimate_number
    row[FRACTIONS.get(study.objective, "val NLL, nats")] = (
        MISSING if candidate.diverged else shown(candidate.validation)
    )
    is_decided = candidate.difference is not None and candidate.difference.decided
    return row | {
        "test accuracy, %": test_cell(candidate),
        "n": str(len(candidate.trial_ids)),
        "minus": candidate.baseline or MISSING,
        # an exploratory interval is not corrected for being one of several, so only the primary claim is bold
        "difference, points": bold_if(candidate.primary and is_decided, difference_cell(candidate)),
        "p (Holm)": p_value(candidate.p_holm),
        "claim": "primary" if candidate.primary else "exploratory" if candidate.difference else MISSING,
    }
