"""The choice of the recipes that race and that are confirmed: pure functions of what trials reached on validation."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import AT_LEAST_OF_EACH
from kdtrain.config.teacher import Student

TRAININGS_OF_EACH = 3
"""The default of `select.trainings` is at least this number for each candidate."""


@dataclass(frozen=True)
class SearchedTrial:
    """A trial of a search. `ranking_key` (see `trials.objectives`) is its best epoch's; None if it is not complete.

    `option` is that of the compared choice, or a baseline's student model.
    """

    stage: str
    number: int
    trial_id: str
    values: Values
    student: Student
    ranking_key: tuple[float, float] | None
    option: str | None = None

    @property
    def key(self) -> str:
        """The trial's name in a race: "search 12"."""
        return f"{self.stage} {self.number}"


@dataclass(frozen=True)
class Candidate:
    """A recipe that is trained with every confirming seed.

    Its key ("best", "best kd", "published 2", "baseline 1") names it in journal and report; stage and number are those
    of the searched trial; `baseline` is the key of the baseline that it is compared with.
    """

    key: str
    role: str
    trial: SearchedTrial
    values: Values
    baseline: str | None

    def as_json(self) -> dict[str, Any]:
        """Return what the journal tells of a candidate beside its values."""
        source = {"stage": self.trial.stage, "number": self.trial.number}
        return {"candidate": self.key, "role": self.role, "source": source, "baseline": self.baseline}


def ranked(trials: Sequence[SearchedTrial]) -> list[SearchedTrial]:
    """Return the complete trials of distinct recipes, best first: by ranking key, then number."""
    complete = [(trial.ranking_key, trial) for trial in trials if trial.ranking_key is not None]
    complete.sort(key=lambda pair: (*(-part for part in pair[0]), pair[1].number))
    distinct: dict[str, SearchedTrial] = {}
    for _, trial in complete:
        distinct.setdefault(trial.trial_id, trial)
    return list(distinct.values())


def racing_trials(ordered: Sequence[SearchedTrial], candidates: int, published: int) -> list[SearchedTrial]:
    """Return the trials that race, most promising first.

    They are the first `candidates` of the ordered trials, the published ones among them all, and the first two of each
    option.
    """
    chosen = []
    of_option: dict[str | None, int] = {}
    for i, trial in enumerate(ordered):
        of_option[trial.option] = of_option.get(trial.option, 0) + 1
        is_among_the_first = i < candidates or of_option[trial.option] <= AT_LEAST_OF_EACH
        if is_among_the_first or trial.number < published:
            chosen.append(trial)
    return chosen


def race_trainings(setting: int | None, trials: int, candidates: int) -> int:
    """Return the maximum number of trainings of a race: `select.trainings`, or its default."""
    return setting if setting is not None else max(trials // 2, TRAININGS_OF_EACH * candidates)


def most_rounds(trainings: int, candidates: int) -> int:
    """Return the upper bound of the number of rounds of a race: after the first one two candidates may be left."""
    return 0 if candidates < 2 else 1 + (trainings - candidates) // 2


def confirmed_candidates(
    leaders: Mapping[str, SearchedTrial],
    published: Sequence[SearchedTrial],
    baselines: Mapping[str, SearchedTrial],
    alone: Sequence[SearchedTrial],
    baseline_parameters: Sequence[str],
) -> list[Candidate]:
    """Return the recipes that are confirmed: the best, the published ones, and the baselines that these need.

    A candidate is compared with the winning baseline of its student model. If the baselines' search has no complete
    trial of that model, the student is trained alone at the candidate's own values. The best baseline of the exact
    student of each published recipe is confirmed as well.

    Args:
        leaders: The best trial of each option; the option is "" if there is only one group.
        published: The searched trials of the published points that are confirmed.
        baselines: The winning baseline by student model.
        alone: The trials of the baselines' search.
        baseline_parameters: The names of the hyperparameters that the student alone has.
    """
    needed: list[SearchedTrial] = []

    def key_of(trial: SearchedTrial) -> str:
        if trial not in needed:
            needed.append(trial)
        return f"baseline {needed.index(trial) + 1}"

    def baseline_of(trial: SearchedTrial) -> str:
        model = trial.student.model
        added = [other for other in needed if other.stage == trial.stage and other.student.model == model]
        return key_of(baselines[model] if model in baselines else [*added, trial][0])

    numbers = [trial.number for trial in published]
    chosen = []
    for option, trial in leaders.items():
        if trial.number not in numbers:
            key = f"best {option}" if option else "best"
            chosen.append(Candidate(key, "best", trial, trial.values, baseline_of(trial)))
    for trial in published:
        for other in [other for other in ranked(alone) if other.student == trial.student][:1]:
            won = baselines.get(trial.student.model)
            key_of(won if won is not None and won.student == trial.student else other)
        key = f"published {trial.number + 1}"
        chosen.append(Candidate(key, "published", trial, trial.values, baseline_of(trial)))
    for i, trial in enumerate(needed, 1):
        values = {name: value for name, value in trial.values.items() if name in baseline_parameters}
        chosen.append(Candidate(f"baseline {i}", "baseline", trial, values, None))
    return chosen


def mean_objectives(runs: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Return the mean objective over the seeds of each candidate whose runs are all complete (have a value)."""
    complete = {key: [value for value in values if value is not None] for key, values in runs.items()}
    return {key: statistics.fmean(values) for key, values in complete.items() if len(values) == len(runs[key])}


def compared_recipes(recipes: Mapping[str, Recipe], means: Mapping[str, float], *, maximize: bool) -> list[Recipe]:
    """Return what pictures compare: the best distilled recipe of each `student.freeze`, then all students alone."""
    sign = 1 if maximize else -1
    keys = sorted((key for key in recipes if key in means), key=lambda key: -sign * means[key])
    distilled: dict[str, Recipe] = {}
    alone = []
    for recipe in (recipes[key] for key in keys):
        if recipe.teacher is None:
            alone.append(recipe)
        else:
            distilled.setdefault(recipe.student.freeze, recipe)
    return [*distilled.values(), *alone]
