"""The choice of candidates and winner: pure functions of what the trials have reached on validation data."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe, Student


@dataclass(frozen=True)
class SearchedTrial:
    """A trial of a search. `ranking_key` (see `trials.objectives`) is its best epoch's; None if it is not complete."""

    stage: str
    number: int
    trial_id: str
    values: Values
    student: Student
    ranking_key: tuple[float, float] | None


@dataclass(frozen=True)
class Candidate:
    """A recipe that is trained with every confirming seed.

    Its key ("best 1", "published 2", "baseline 1") names it in journal and report; stage and number are those of the
    searched trial; `baseline` is the key of the baseline that it is compared with.
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
    """Return the complete trials of distinct recipes, best first: by ranking key, then number."""
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
    """Return the mean objective over the seeds of each candidate whose runs are all complete (have a value)."""
    complete = {key: [value for value in values if value is not None] for key, values in runs.items()}
    return {key: statistics.fmean(values) for key, values in complete.items() if len(values) == len(runs[key])}


def choose_winner(candidates: Sequence[Candidate], means: Mapping[str, float], *, maximize: bool) -> Candidate | None:
    """Return the candidate with role "best" of the best mean objective, the first of equal ones, or None."""
    best = [candidate for candidate in candidates if candidate.role == "best" and candidate.key in means]
    return max(best, key=lambda candidate: _sign(maximize) * means[candidate.key], default=None)


def compared_recipes(recipes: Mapping[str, Recipe], means: Mapping[str, float], *, maximize: bool) -> list[Recipe]:
    """Return what pictures compare: the best distilled recipe of each `student.freeze`, then all students alone."""
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
