"""Importance of each searched hyperparameter, per branch of a conditional space."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from analysis.frame import Study, complete_trials
from kdtrain.storage.folder import Row

TRIALS_NEEDED = 20
RESAMPLES = 10
RESAMPLED_TREES = 16
"""The trees of the forest over a resample; the one over the trials themselves has 64, Optuna's default."""
MOST_TRIALS = 150
"""A forest sees at most as many trials: the time of Optuna's fANOVA grows with their square, 9 s for 500 trials."""
BEST_TRIALS_NEEDED = 5
"""PED-ANOVA compares the best trials with all; with fewer best ones its result is not stable."""
BEST_SHARE = 0.1
LOG_KINDS = ("loguniform", "logint")


@dataclass(frozen=True)
class Importance:
    """The importance of a hyperparameter on a branch, with the range of its values over resamples of the trials."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Branch:
    """One set of labels of the choices on which other hyperparameters are conditional.

    complete: number of complete trials; used: number of those that the importances are computed of. fanova: share of
    the variance that each hyperparameter explains alone; ped_anova: share of each in reaching the best trials. Both are
    None for the `reason`.
    """

    labels: Mapping[str, str]
    parameters: Sequence[Row]
    complete: int
    fanova: Mapping[str, Importance] | None
    ped_anova: Mapping[str, Importance] | None
    reason: str | None

    @property
    def used(self) -> int:
        return min(self.complete, MOST_TRIALS)

    @property
    def shares(self) -> Mapping[str, float] | None:
        """The shares of the variance by hyperparameter."""
        return None if self.fanova is None else {name: each.value for name, each in self.fanova.items()}

    @property
    def title(self) -> str:
        return ", ".join(f"{name} = {label}" for name, label in self.labels.items()) or "the whole space"


def branches(study: Study, resamples: int = RESAMPLES) -> list[Branch]:
    """Return the importances by branch: over all branches at once the share of a decisive choice is near 0.

    Args:
        study: The study.
        resamples: The number of resamples that the ranges are taken over; without any, a range is its value.
    """
    complete = complete_trials(study.stage("search"), study.objective)
    sign = 1.0 if study.larger_is_better else -1.0
    found = []
    for labels in branch_labels(study.parameters):
        active = [p for p in study.parameters if p["name"] not in labels and _holds(p["conditions"], labels)]
        inside = study.values.loc[complete.index]
        for name, label in labels.items():
            inside = inside[inside[name] == label]
        values = inside[[p["name"] for p in active]].dropna()
        found.append(_branch(labels, active, values, sign * complete.loc[values.index, study.objective], resamples))
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
    return _first_branch(values, branch_labels(parameters))


def branches_of(values: pd.DataFrame, parameters: Sequence[Row]) -> list[dict[str, str]]:
    """Return the labels of the branch of each row of values."""
    labels = branch_labels(parameters)
    return [_first_branch(row, labels) for row in values.to_dict("records")]


def _first_branch(values: Mapping[Any, Any] | pd.Series, labels: list[dict[str, str]]) -> dict[str, str]:
    return next((each for each in reversed(labels) if _holds(each, values)), {})


def _holds(conditions: Mapping[str, str], values: Mapping[str, Any] | pd.Series) -> bool:
    return all(values.get(name) == label for name, label in conditions.items())


def _branch(
    labels: dict[str, str], active: list[Row], values: pd.DataFrame, objective: pd.Series, resamples: int
) -> Branch:
    reason = None
    if not active:
        reason = "no hyperparameter is searched on this branch"
    elif len(values) < TRIALS_NEEDED:
        reason = f"left out: {len(values)} complete trials, fewer than the {TRIALS_NEEDED} that an importance needs"
    elif objective.nunique() == 1:
        reason = f"left out: all {len(values)} complete trials reached the same value"
    fanova = ped_anova = None
    if reason is None:
        try:
            fanova, ped_anova = _importances(active, values, objective, resamples)
        except ImportError as error:  # optuna needs scikit-learn for fANOVA
            reason = f"left out: a package cannot be imported ({error})"
    return Branch(labels, active, len(values), fanova, ped_anova, reason)


def _importances(
    active: list[Row], values: pd.DataFrame, objective: pd.Series, resamples: int
) -> tuple[dict[str, Importance], dict[str, Importance]]:
    """Return the importances by fANOVA (Hutter et al. 2014, ICML) and by PED-ANOVA (Watanabe et al. 2023, IJCAI).

    The random forest is seeded. Hyperparameters on a log scale enter as logarithms. A resample draws trials with
    replacement (Efron 1979); each has a forest of its own seed. Of more than MOST_TRIALS trials as many are drawn.

    Args:
        active: The hyperparameters.
        values: Their values, a row per trial.
        objective: The objective of each trial; larger is better.
        resamples: Their number.
    """
    scaled = {p["name"]: [_scaled(p, value) for value in values[p["name"]]] for p in active}
    distributions = {p["name"]: _distribution(p, scaled[p["name"]]) for p in active}
    trials = [
        optuna.trial.create_trial(
            params={name: column[i] for name, column in scaled.items()}, distributions=distributions, value=float(value)
        )
        for i, value in enumerate(objective)
    ]
    drawn = np.random.default_rng(0)
    if len(trials) > MOST_TRIALS:
        trials = [trials[i] for i in sorted(drawn.permutation(len(trials))[:MOST_TRIALS])]
    resampled = drawn.integers(len(trials), size=(resamples, len(trials)))
    samples = [trials, *([trials[i] for i in row] for row in resampled)]
    # one value only: nothing can be explained, and Optuna divides by the variance
    samples = [sample for sample in samples if len({trial.value for trial in sample}) > 1]

    def best_share(sample: list[optuna.trial.FrozenTrial]) -> float:
        return max(BEST_SHARE, BEST_TRIALS_NEEDED / len(sample))

    with _quiet():
        fanova = [
            _shares(
                each, FanovaImportanceEvaluator(seed=i, **({"n_trees": RESAMPLED_TREES} if i else {})), normalize=False
            )
            for i, each in enumerate(samples)
        ]
        ped_anova = [
            _shares(each, PedAnovaImportanceEvaluator(target_quantile=best_share(each)), normalize=True)
            for each in samples
        ]
    return _with_ranges(fanova), _with_ranges(ped_anova)


def _shares(
    trials: list[optuna.trial.FrozenTrial], evaluator: BaseImportanceEvaluator, *, normalize: bool
) -> dict[str, float]:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return get_param_importances(study, evaluator=evaluator, normalize=normalize)


def _with_ranges(found: list[dict[str, float]]) -> dict[str, Importance]:
    """Return the importances of all trials, which are the first, with the range over all of `found`."""
    return {
        name: Importance(value, min(each[name] for each in found), max(each[name] for each in found))
        for name, value in found[0].items()
    }


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
