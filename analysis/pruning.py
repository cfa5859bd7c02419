"""Was pruning safe? The rank correlation of the value at each rung with the final value, over trials that finished."""

from typing import Any

import pandas as pd

from analysis.by_method import rank_correlation
from analysis.claims import option_label
from analysis.frame import SEARCHED, Study, complete_trials
from analysis.tables import MISSING, Rows

MOST_RUNGS = 8


def rank_correlations(study: Study) -> Rows:
    """Return a row for each option (or stage) and each epoch at which the pruner stopped one of its trials.

    Of more than MOST_RUNGS epochs those with the most pruned trials are shown.
    """
    found = []
    for stage in SEARCHED[::-1]:
        trials = study.stage(stage)
        labels = pd.Series([_label(study, stage, index) for index in trials.index], index=trials.index, dtype=object)
        for label in labels.unique():
            found += _rows(study, label, trials[labels == label])
    return found


def _rows(study: Study, label: str, trials: pd.DataFrame) -> list[dict[str, Any]]:
    stopped = trials.loc[trials["state"] == "pruned", "epochs"].dropna().astype(int).value_counts()
    rungs = sorted(sorted(stopped.index, key=lambda epoch: (-stopped[epoch], epoch))[:MOST_RUNGS])
    complete = complete_trials(trials, study.objective).drop_duplicates("trial_id").set_index("trial_id")
    rows = []
    for rung in rungs:
        at = study.epochs[study.epochs["epoch"] == rung].set_index("trial_id")[study.objective].dropna()
        went_on = complete.index[(complete["epochs"] > rung) & complete.index.isin(at.index)]
        found = rank_correlation(at.loc[went_on], complete.loc[went_on, study.objective])
        rows.append(
            {
                "trials": label,
                "rung": f"epoch {rung}",
                "pruned there": str(stopped[rung]),
                "finished (n)": str(len(went_on)),
                "rank correlation with the final value": MISSING if found is None else f"{found:+.2f}",
            }
        )
    return rows


def _label(study: Study, stage: str, index: Any) -> str:
    if stage == "baselines":
        return "student alone"
    return option_label(study, study.values.loc[index]) or "student distilled"
