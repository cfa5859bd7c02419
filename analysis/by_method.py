"""What a method's hyperparameters did, setup beside setup: a table a method, a row a (sweep, hyperparameter)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from analysis.frame import Study
from analysis.importance import Branch, branch_of
from analysis.plots import AXIS
from analysis.results import ranked, searched_range
from analysis.summary import Summary, method_of
from analysis.tables import MISSING, count, listed, markdown, missing, number, sampled
from kdtrain.storage.folder import Row

VALUES_FOR_A_CORRELATION = 5
EXPLAINED = (
    "Over the complete trials of each search. *best value*: the winner's where it is of this method, else that of the "
    "method's best complete trial. *published*: of the published points, where the sweep has some. *importance*: share "
    "of the objective's variance (fANOVA), per branch of the space. *what it did*: Spearman's rank correlation of the "
    "value with the objective, signed so that + means larger values did better, from "
    f"{VALUES_FOR_A_CORRELATION} trials on; of a choice the mean objective by option (trials). The sampler chose "
    "the values and the other hyperparameters moved with them: these are associations within a sweep, not effects.\n"
)


def methods_section(summaries: Sequence[Summary]) -> str:
    """A subsection for each method that any trial of any search has; what no trial reached is said by name."""
    read = [(summary, summary.study) for summary in summaries if summary.study]
    parts = ["## What each method's hyperparameters did\n"]
    searches = {summary.name: _methods(study) for summary, study in read}
    found = sorted({method for methods in searches.values() for method in methods.dropna()})
    if found:
        parts.append(EXPLAINED)
    for method in found:
        rows, notes = [], []
        for summary, study in read:
            methods = searches[summary.name]
            trials = study.trials.loc[methods.index[methods == method]]
            if len(trials):
                rows += [{"sweep": summary.name, **row} for row in _rows(summary, study, method, trials)]
                notes += [f"{summary.name}: {note}" for note in _notes(summary, study, trials)]
        table = markdown(pd.DataFrame(rows)) if rows else ""
        parts.append(f"### {method}\n\n{table}" + ("\n" if rows and notes else "") + _bullets(notes))
    unreached = [f"{summary.name}: {note}" for summary, study in read for note in _unreached(summary, study)]
    if unreached:
        parts.append(f"### Not reached\n\n{_bullets(unreached)}")
    return "\n".join(parts) if found or unreached else ""


def rank_correlation(values: pd.Series, merit: pd.Series) -> float | None:
    """Spearman 1904 (Am. J. Psychol. 15, 72-101), ties by mean rank; None of too few, or where one never changes."""
    if len(values) < VALUES_FOR_A_CORRELATION or values.nunique() < 2 or merit.nunique() < 2:
        return None
    return float(stats.spearmanr(values.astype(float), merit).statistic)


def _methods(study: Study) -> pd.Series:
    """By trial of the search, its method's name; None where it has not begun."""
    search = study.stage("search")
    return search["trial_id"].map(lambda trial_id: method_of(study, trial_id)).astype(object)


def _rows(summary: Summary, study: Study, method: str, trials: pd.DataFrame) -> list[dict[str, Any]]:
    best, source = _best(summary, study, method, trials)
    own = [branch for branch in summary.branches if len(_inside(study, branch, trials))]
    rows = []
    for parameter in study.parameters:
        name = parameter["name"]
        values = study.values.loc[trials.index, name].dropna()
        if values.empty or name == "method":  # which method it is names the table
            continue
        published = dict.fromkeys(map(sampled, values[trials.loc[values.index, "published"]]))
        complete = _complete(study, trials.loc[values.index])
        rows.append(
            {
                "hyperparameter": f"`{name}`",
                "searched": searched_range(parameter),
                "best value": sampled(best.get(name)),
                "of": source,
                "published": listed(published) or MISSING,
                "importance": _importance(own, name),
                "what it did": _effect(study, parameter, values[complete.index], complete),
                "n": count(len(complete)),
            }
        )
    return rows


def _best(summary: Summary, study: Study, method: str, trials: pd.DataFrame) -> tuple[Mapping[str, Any], str]:
    """Values and where they come from."""
    if summary.winner and method_of(study, (study.winner or {}).get("trial_id")) == method:
        return summary.winner.values, "winner"
    order = _complete(study, ranked(study)).index
    first = next((index for index in order if index in trials.index), None)
    if first is None:
        return {}, MISSING
    return study.values.loc[first].dropna().to_dict(), f"trial {trials.loc[first, 'number']}"


def _importance(own: list[Branch], name: str) -> str:
    """Of each branch that has the parameter; the notes say why one was left out."""
    if any(name in branch.labels for branch in own):
        return "splits the space"
    having = [branch for branch in own if any(p["name"] == name for p in branch.parameters)]
    shares = [f"{branch.shares[name]:.2f}" if branch.shares else MISSING for branch in having]
    if len(having) == 1:
        return shares[0]
    return "; ".join(f"{share} ({branch.title})" for share, branch in zip(shares, having, strict=True)) or MISSING


def _effect(study: Study, parameter: Row, values: pd.Series, complete: pd.DataFrame) -> str:
    objective = complete[study.objective]
    if parameter["kind"] == "choice":
        return ", ".join(f"{option} {_mean(study, objective[values == option])}" for option in parameter["choices"])
    found = rank_correlation(values, objective if study.larger_is_better else -objective)
    return MISSING if found is None else f"rho = {found:+.2f}"


def _mean(study: Study, objective: pd.Series) -> str:
    label, scale = AXIS[study.objective]
    unit = label.rpartition(", ")[2]
    mean = objective.mean() * scale if len(objective) else None
    return f"{number(mean, 2 if scale > 1 else 4)}{'' if missing(mean) else f' {unit}'} ({len(objective)})"


def _notes(summary: Summary, study: Study, trials: pd.DataFrame) -> list[str]:
    """Why a branch has no importance."""
    return [
        f"importance{f' where {branch.title}' if branch.labels else ''} is {branch.reason}"
        if branch.parameters
        else str(branch.reason)
        for branch in summary.branches
        if branch.reason and len(_inside(study, branch, trials))
    ]


def _unreached(summary: Summary, study: Study) -> list[str]:
    search = study.stage("search")
    begun = search[_methods(study).notna()]
    if begun.empty:
        return ["no trial of the search has begun"]
    return [f"no trial has {branch.title}" for branch in summary.branches if not len(_inside(study, branch, begun))]


def _inside(study: Study, branch: Branch, trials: pd.DataFrame) -> list[Any]:
    return [i for i in trials.index if branch_of(study.values.loc[i], study.parameters) == branch.labels]


def _complete(study: Study, trials: pd.DataFrame) -> pd.DataFrame:
    return trials[(trials["state"] == "complete") & trials[study.objective].notna()]


def _bullets(notes: Sequence[str]) -> str:
    return "".join(f"- {note}\n" for note in notes)
