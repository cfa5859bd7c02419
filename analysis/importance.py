"""Importance of each searched hyperparameter, per branch of a conditional space."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from analysis.frame import Study, complete_trials
from kdtrain.storage.folder import Row

TRIALS_NEEDED = 20
LOG_KINDS = ("loguniform", "logint")


@dataclass(frozen=True)
class Branch:
    """One set of labels of the choices on which other hyperparameters are conditional.

    complete: number of complete trials; shares: of the variance by hyperparameter, or None for the `reason`.
    """

    labels: Mapping[str, str]
    parameters: Sequence[Row]
    complete: int
    shares: Mapping[str, float] | None
    reason: str | None

    @property
    def title(self) -> str:
        return ", ".join(f"{name} = {label}" for name, label in self.labels.items()) or "the whole space"


def branches(study: Study) -> list[Branch]:
    """Return the importances by branch: over all branches at once the share of a decisive choice is near 0."""
    complete = complete_trials(study.stage("search"), study.objective)
    found = []
    for labels in branch_labels(study.parameters):
        active = [p for p in study.parameters if p["name"] not in labels and _holds(p["conditions"], labels)]
        inside = [index for index in complete.index if _holds(labels, study.values.loc[index])]
        values = study.values.loc[inside, [p["name"] for p in active]].dropna()
        found.append(_branch(labels, active, values, complete.loc[values.index, study.objective]))
    return found


def branch_labels(parameters: Sequence[Row]) -> list[dict[str, str]]:
    """Return every set of labels that the space can reach, [{}] for a space without conditional hyperparameters."""
    branching = {name for parameter in parameters for name in parameter["conditions"]}
    sets: list[dict[str, str]] = [{}]
    for choice in sorted((p for p in parameters if p["name"] in branching), key=lambda p: len(p["conditions"])):
        sets = [
            {**labels, choice["name"]: label} if label is not None else labels
            for labels in sets
            for label in (choice["choices"] if _holds(choice["conditions"], labels) else [None])
        ]
    return sets


def branch_of(values: Mapping[str, Any] | pd.Series, parameters: Sequence[Row]) -> dict[str, str]:
    """Return the labels of the branch to which a trial's values belong."""
    return next((labels for labels in reversed(branch_labels(parameters)) if _holds(labels, values)), {})


def _holds(conditions: Mapping[str, str], values: Mapping[str, Any] | pd.Series) -> bool:
    return all(values.get(name) == label for name, label in conditions.items())


def _branch(labels: dict[str, str], active: list[Row], values: pd.DataFrame, objective: pd.Series) -> Branch:
    reason = None
    if not active:
        reason = "no hyperparameter is searched on this branch"
    elif len(values) < TRIALS_NEEDED:
        reason = f"left out: {len(values)} complete trials, fewer than the {TRIALS_NEEDED} that an importance needs"
    elif objective.nunique() == 1:
        reason = f"left out: all {len(values)} complete trials reached the same value"
    shares = None
    if reason is None:
        try:
            shares = _shares(active, values, objective)
        except ImportError as error:  # optuna needs scikit-learn for fANOVA
            reason = f"left out: a package cannot be imported ({error})"
    return Branch(labels, active, len(values), shares, reason)


def _shares(active: list[Row], values: pd.DataFrame, objective: pd.Series) -> dict[str, float]:
    """Return the share of the variance that each hyperparameter explains alone, by fANOVA (Hutter et al. 2014, ICML).

    The random forest is seeded. Hyperparameters on a log scale enter as logarithms.
    """
    scaled = {p["name"]: [_scaled(p, value) for value in values[p["name"]]] for p in active}
    distributions = {p["name"]: _distribution(p, scaled[p["name"]]) for p in active}
    with _quiet():
        study = optuna.create_study(direction="maximize")
        for i, value in enumerate(objective):
            params = {name: column[i] for name, column in scaled.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(value)))
        return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), normalize=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log line of the temporary study, and the warning that the argument `normalize` is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _scaled(parameter: Row, value: Any) -> Any:
    if parameter["kind"] == "choice":
        return value
    return log(value) if parameter["kind"] in LOG_KINDS else float(value)


def _distribution(parameter: Row, values: list[Any]) -> BaseDistribution:
    if parameter["kind"] == "choice":
        return CategoricalDistribution(parameter["choices"])
    ends = [_scaled(parameter, parameter[end]) for end in ("low", "high")]
    return FloatDistribution(min(*ends, *values), max(*ends, *values))
