"""The effect of each method's hyperparameters over all sweeps: one table per method, one row per hyperparameter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from analysis.frame import AXIS, Study, complete_trials
from analysis.importance import Branch, branch_of
from analysis.results import ranked, searched_range
from analysis.summary import Summary, method_of
from analysis.tables import MISSING, count, listed, missing, number, sampled
from kdtrain.storage.folder import Row

VALUES_FOR_A_CORRELATION = 5


def methods(summaries: Sequence[Summary]) -> dict[str, Any]:
    """Return a table for each method that a trial of any search has.

    found: name and rows of each method, and as notes the sweeps with their branches that have no importance;
    not_begun: sweeps of whose search no trial has begun; unreached: sweeps with their branches without a trial.
    """
    read = [(summary, summary.study) for summary in summaries if summary.study]
    names = {summary.name: _methods(study) for summary, study in read}
    found = []
    for method in sorted({name for each in names.values() for name in each.dropna()}):
        rows: list[dict[str, Any]] = []
        notes: list[tuple[str, Branch]] = []
        for summary, study in read:
            of_sweep = names[summary.name]
            trials = study.trials.loc[of_sweep.index[of_sweep == method]]
            if len(trials):
                own = [branch for branch in summary.branches if _reached(study, branch, trials)]
                rows += [{"sweep": summary.name, **row} for row in _rows(summary, study, method, trials, own)]
                notes += [(summary.name, branch) for branch in own if branch.reason]
        found.append({"name": method, "rows": rows, "notes": notes})
    begun = {summary.name: study.stage("search")[names[summary.name].notna()] for summary, study in read}
    return {
        "found": found,
        "not_begun": [sweep for sweep, trials in begun.items() if trials.empty],
        "unreached": [
            (summary.name, branch)
            for summary, study in read
            for branch in summary.branches
            if len(begun[summary.name]) and not _reached(study, branch, begun[summary.name])
        ],
    }


def rank_correlation(values: pd.Series, ranking: pd.Series) -> float | None:
    """Return Spearman's rank correlation (1904, Am. J. Psychol. 15, 72-101), ties by mean rank.

    None if there are fewer than VALUES_FOR_A_CORRELATION values, or if one of the two is constant.
    """
    if len(values) < VALUES_FOR_A_CORRELATION or values.nunique() < 2 or ranking.nunique() < 2:
        return None
    return float(stats.spearmanr(values.astype(float), ranking).statistic)


def _methods(study: Study) -> pd.Series:
    """Return the method's name of each trial of the search, None before the trial has begun."""
    search = study.stage("search")
    return search["trial_id"].map(lambda trial_id: method_of(study, trial_id)).astype(object)


def _rows(summary: Summary, study: Study, method: str, trials: pd.DataFrame, own: list[Branch]) -> Iterator[Row]:
    best, source = _best(summary, study, method, trials)
    for parameter in study.parameters:
        name = parameter["name"]
        values = study.values.loc[trials.index, name].dropna()
        if values.empty or name == "method":  # the table is that of one method
            continue
        published = dict.fromkeys(map(sampled, values[trials.loc[values.index, "published"]]))
        complete = complete_trials(trials.loc[values.index], study.objective)
        yield {
            "hyperparameter": f"`{name}`",
            "searched": searched_range(parameter),
            "best value": sampled(best.get(name)),
            "of": source,
            "published": listed(published) or MISSING,
            "importance": _importance(own, name),
            "association": _association(study, parameter, values[complete.index], complete),
            "n": count(len(complete)),
        }


def _best(summary: Summary, study: Study, method: str, trials: pd.DataFrame) -> tuple[Mapping[str, Any], str]:
    """Return the best values and their source."""
    if summary.winner and method_of(study, (study.winner or {}).get("trial_id")) == method:
        return summary.winner.values, "winner"
    order = complete_trials(ranked(study), study.objective).index
    first = next((index for index in order if index in trials.index), None)
    if first is None:
        return {}, MISSING
    return study.values.loc[first].dropna().to_dict(), f"trial {trials.loc[first, 'number']}"


def _importance(own: list[Branch], name: str) -> str:
    """Return the importance on each branch that has the hyperparameter."""
    if any(name in branch.labels for branch in own):
        return "defines the branches"
    having = [branch for branch in own if any(p["name"] == name for p in branch.parameters)]
    shares = [f"{branch.shares[name]:.2f}" if branch.shares else MISSING for branch in having]
    if len(having) == 1:
        return shares[0]
    return "; ".join(f"{share} ({branch.title})" for share, branch in zip(shares, having, strict=True)) or MISSING


def _association(study: Study, parameter: Row, values: pd.Series, complete: pd.DataFrame) -> str:
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


def _reached(study: Study, branch: Branch, trials: pd.DataFrame) -> bool:
    """Return True if a trial belongs to the branch."""
    return any(branch_of(study.values.loc[i], study.parameters) == branch.labels for i in trials.index)
