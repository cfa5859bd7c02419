"""The compared options, such as methods: what was spent on each, and each against the student alone and the others."""

from typing import Any

import pandas as pd

from analysis.claims import Candidate, Pair, find, label_text
from analysis.frame import Study
from analysis.results import difference_cell, test_cell
from analysis.tables import MISSING, estimate_points, p_value, short_names


def options(study: Study, candidates: list[Candidate], pairs: list[Pair]) -> dict[str, Any] | None:
    """Return the tables of the compared options, or None unless the best recipes of several options are confirmed.

    without: options without a complete trial. times: how many times the trials of each option the student alone has,
    None if the options have different numbers of trials.
    """
    best = [candidate for candidate in candidates if candidate.option is not None]
    if study.compared is None or len(best) < 2:
        return None
    labels = [label_text(label) for label in study.compared["choices"]]
    search, alone = study.stage("search"), study.stage("baselines")
    of_trial = study.values.loc[search.index, study.compared["name"]].map(label_text)
    own = {label: search[of_trial == label] for label in labels}
    sizes = {len(trials) for trials in own.values()}
    size = sizes.pop() if len(sizes) == 1 else 0
    names = list(study.values.loc[alone.index].dropna(axis="columns", how="all").columns)
    rows = [_row(study, each, own[str(each.option)], _searched(study, str(each.option))) for each in best]
    baselines = [find(candidates, key) for key in dict.fromkeys(each.baseline for each in best)]
    rows += [_row(study, baseline, alone, names) for baseline in baselines if baseline]
    return {
        "choice": study.compared["name"],
        "count": len(labels),
        "rows": rows,
        "pairs": [_pair(pair) for pair in pairs],
        "without": [label for label, trials in own.items() if not (trials["state"] == "complete").any()],
        "trials_alone": len(alone),
        "times": len(alone) // size if size and len(alone) % size == 0 else None,
    }


def _row(study: Study, candidate: Candidate, trials: pd.DataFrame, searched: list[str]) -> dict[str, str]:
    states = trials["state"].value_counts()
    counts = [f"{states[state]} {state}" for state in ("complete", "pruned", "failed", "broken") if state in states]
    short = short_names([p["name"] for p in study.parameters])
    names = [short.get(name, name) for name in searched]
    return {
        "option": candidate.option or f"student alone ({candidate.model})",
        "recipe": candidate.key,
        "trials": f"{len(trials)}: {', '.join(counts)}",
        "searched": f"{len(names)}: {', '.join(f'`{name}`' for name in names)}" if names else "0",
        "test accuracy, %": test_cell(candidate),
        "n": str(len(candidate.trial_ids)),
        "minus student alone, points": difference_cell(candidate),
        "p (Holm)": p_value(candidate.p_holm),
        "claim": "primary" if candidate.primary else "exploratory" if candidate.difference else MISSING,
    }


def _pair(pair: Pair) -> dict[str, str]:
    return {
        "difference": f"{pair.first.option} minus {pair.second.option}",
        "points": MISSING if pair.difference and pair.difference.diverged else estimate_points(pair.difference),
        "n": str(pair.difference.n) if pair.difference else "0",
        "p (Holm)": p_value(pair.p_holm),
    }


def _searched(study: Study, label: str) -> list[str]:
    """Return the hyperparameters that are searched with an option."""
    assert study.compared is not None
    choice = study.compared["name"]
    return [
        p["name"]
        for p in study.parameters
        if p["name"] != choice and label_text(p["conditions"].get(choice, label)) == label
    ]
