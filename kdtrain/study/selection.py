"""The choice of candidates and winner: pure functions of what the trials have reached on validation data."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe, Student


@dataclass(frozen=True)
class SearchedTrial:
    """A trial of one of the two searches.

    Attributes:
        stage: "search" or "baselines".
        number: The trial's number in its stage.
        trial_id: The identity of its recipe; equal recipes have equal ones.
        values: The values of its parameters.
        student: The student of its recipe.
        ranking_key: The `trials.outcome.ranking_key` of its best epoch, larger is better; None if it is not complete.
    """

    stage: str
    number: int
    trial_id: str
    values: Values
    student: Student
    ranking_key: tuple[float, float] | None


@dataclass(frozen=True)
class Candidate:
    """A recipe that is trained with every confirming seed.

    Attributes:
        key: Its name in journal and report: "best 1", "published 2", "baseline 1".
        role: "best", "published" or "baseline".
        values: The values of its parameters.
        stage: The search that has tried it.
        number: The number of its trial in that search.
        baseline: The key of the baseline that it is compared with; None for a baseline.
    """

    key: str
    role: str
    values: Values
    stage: str
    number: int
    baseline: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what the journal tells of a candidate beside its values."""
        source = {"stage": self.stage, "number": self.number}
        return {"candidate": self.key, "role": self.role, "source": source, "baseline": self.baseline}


def ranked(trials: Sequence[SearchedTrial]) -> list[SearchedTrial]:
    """Return the complete trials of distinct recipes, the best first.

    They are ordered by objective, then by the other validation metric, then by number.
    """
    complete = [(trial.ranking_key, trial) for trial in trials if trial.ranking_key is not None]
    complete.sort(key=lambda pair: (*(-part for part in pair[0]), pair[1].number))
    distinct: dict[str, SearchedTrial] = {}
    for _, trial in complete:
        distinct.setdefault(trial.trial_id, trial)
    return list(distinct.values())


def choose_candidates(
    searched: Sequence[SearchedTrial],
    alone: Sequence[SearchedTrial],
    *,
    best: int,
    published: int,
    baseline_parameters: Collection[str],
) -> list[Candidate]:
    """Return the recipes that are confirmed: the best, the published ones, and the baselines that these need.

    A candidate is compared with the best baseline of its student model. If the baselines' search has no complete trial
    of that model, the student is trained alone at the candidate's own values. The best baseline of every other student
    model, and the best one of the exact student of a published recipe, are confirmed as well.

    Args:
        searched: The trials of the search.
        alone: The trials of the baselines' search.
        best: The number of the best trials to confirm.
        published: The number of published recipes, which are the first trials of the search.
        baseline_parameters: The names of the parameters that a student alone has.
    """
    ranked_alone = ranked(alone)
    baselines: list[SearchedTrial] = []

    def key_of(trial: SearchedTrial) -> str:
        if trial not in baselines:
            baselines.append(trial)
        return f"baseline {baselines.index(trial) + 1}"

    def baseline_of(trial: SearchedTrial) -> str:
        model = trial.student.model
        tried = [other for other in ranked_alone if other.student.model == model]
        added = [other for other in baselines if other.stage == trial.stage and other.student.model == model]
        return key_of([*tried, *added, trial][0])

    chosen = []
    for i, trial in enumerate(ranked(searched)[:best], 1):
        chosen.append(_candidate(f"best {i}", "best", trial, baseline_of(trial)))
    for trial in (trial for trial in searched if trial.number < published):
        for other in [other for other in ranked_alone if other.student == trial.student][:1]:
            key_of(other)
        chosen.append(_candidate(f"published {trial.number + 1}", "published", trial, baseline_of(trial)))
    for trial in ranked_alone:
        if trial.student.model not in {other.student.model for other in baselines}:
            key_of(trial)
    for i, trial in enumerate(baselines, 1):
        values = {name: value for name, value in trial.values.items() if name in baseline_parameters}
        chosen.append(Candidate(f"baseline {i}", "baseline", values, trial.stage, trial.number, None))
    return chosen


def mean_objectives(runs: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return the mean objective over the seeds, by candidate, of the candidates whose runs are all complete.

    Args:
        runs: The objective of each run of each candidate; None for a run that is not complete.
    """
    complete = {key: [value for value in values if value is not None] for key, values in runs.items()}
    return {key: statistics.fmean(values) for key, values in complete.items() if len(values) == len(runs[key])}


def choose_winner(candidates: Sequence[Candidate], means: Mapping[str, float], *, maximize: bool) -> Candidate | None:
    """Return the best of the candidates with the role "best" by its mean objective, the first of equal ones.

    Args:
        candidates: All candidates, of whatever role.
        means: The mean objective of each candidate that has one.
        maximize: True if a larger objective is better.

    Returns:
        The winner, or None if no such candidate has a mean.
    """
    best = [candidate for candidate in candidates if candidate.role == "best" and candidate.key in means]
    return max(best, key=lambda candidate: _sign(maximize) * means[candidate.key], default=None)


def compared_recipes(recipes: Mapping[str, Recipe], means: Mapping[str, float], *, maximize: bool) -> list[Recipe]:
    """Return what pictures show side by side.

    Args:
        recipes: The recipe of each candidate with the first confirming seed.
        means: The mean objective of each candidate that has one.
        maximize: True if a larger objective is better.

    Returns:
        The best distilled recipe of each value of `student.freeze`, then all students alone, the best first.
    """
    keys = sorted((key for key in recipes if key in means), key=lambda key: -_sign(maximize) * means[key])
    distilled: dict[str, Recipe] = {}
    alone = []
    for recipe in (recipes[key] for key in keys):
        if recipe.teacher is None:
            alone.append(recipe)
        else:
            distilled.setdefault(recipe.student.freeze, recipe)
    return [*distilled.values(), *alone]


def _candidate(key: str, role: str, trial: SearchedTrial, baseline: str) -> Candidate:
    return Candidate(key, role, trial.values, trial.stage, trial.number, baseline)


def _sign(maximize: bool) -> int:
    return 1 if maximize else -1
