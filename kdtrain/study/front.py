"""The front of a trade-off between the objective and the cost of a student: pure functions.

A trial is on the front if no cheaper or equally expensive one has a better or an equal objective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kdtrain.config.parameter import Label
from kdtrain.study.selection import Candidate, SearchedTrial, ranked

MOST_BANDS = 4
"""Trials are pruned by comparison with those of their own band of costs; there are at most so many."""
StudentKey = tuple[tuple[str, Label], ...]


@dataclass(frozen=True)
class Costs:
    """The cost of every student of a space.

    Attributes:
        names: The names of the choices that decide which student a trial has.
        of_student: The cost by the values of these choices, absent ones left out.
    """

    names: tuple[str, ...]
    of_student: Mapping[StudentKey, float]

    def of(self, values: Mapping[str, Label]) -> float:
        """Return the cost at a point of the space."""
        return self.of_student[student_key(self.names, values)]

    def band(self, values: Mapping[str, Label]) -> int:
        """Return the band of a point: a quantile of the space's distinct costs, which no trial changes."""
        return self._bands[self.of(values)]

    @cached_property
    def _bands(self) -> dict[float, int]:
        return bands(list(self.of_student.values()))


def student_key(names: Sequence[str], values: Mapping[str, Label]) -> StudentKey:
    """Return the values of the choices that decide which student a trial has."""
    return tuple((name, values[name]) for name in names if name in values)


def bands(costs: Sequence[float], most: int = MOST_BANDS) -> dict[float, int]:
    """Return the band of each distinct cost; each band has as many of them as the others, but for one."""
    distinct = sorted(set(costs))
    count = min(most, len(distinct))
    return {cost: i * count // len(distinct) for i, cost in enumerate(distinct)}


def front(trials: Sequence[SearchedTrial], costs: Costs) -> list[SearchedTrial]:
    """Return the complete trials that no other one dominates, the cheapest first.

    Of equal cost and objective, the one of the lower validation NLL is taken, then that of the lower number.
    """
    found: list[SearchedTrial] = []
    best: float | None = None
    for trial in sorted(ranked(trials), key=lambda trial: costs.of(trial.values)):  # a stable sort: the best first
        assert trial.ranking_key is not None
        if best is None or trial.ranking_key[0] > best:
            best = trial.ranking_key[0]
            found.append(trial)
    return found


def spread(points: Sequence[SearchedTrial], costs: Costs, most: int) -> list[SearchedTrial]:
    """Return at most `most` points of a front, evenly spread by cost: its two ends, and the nearest to equal steps."""
    if len(points) <= most:
        return list(points)
    low, high = costs.of(points[0].values), costs.of(points[-1].values)
    steps = [high - (high - low) * i / max(most - 1, 1) for i in range(most)]
    rest, taken = list(points), []
    for step in steps:
        nearest = min(rest, key=lambda point: abs(costs.of(point.values) - step))
        rest.remove(nearest)
        taken.append(nearest)
    return [point for point in points if point in taken]


def most_accurate(points: Sequence[SearchedTrial], costs: Costs, most: float) -> SearchedTrial | None:
    """Return the most accurate point of a front that costs at most `most`, or None."""
    affordable = [point for point in points if costs.of(point.values) <= most]
    return affordable[-1] if affordable else None


def front_candidates(
    searched: Sequence[SearchedTrial],
    alone: Sequence[SearchedTrial],
    published: Sequence[SearchedTrial],
    costs: Costs,
    most: int,
    baseline_parameters: Sequence[str],
) -> list[Candidate]:
    """Return the recipes that are confirmed: the points of the front, the published ones, and the baselines' front.

    Each is compared with the most accurate baseline that costs no more. If no trial of the baselines' search is so
    cheap, it is compared with its own student alone, at its own values. The winner is the last point of the front.

    Args:
        searched: The front of the search.
        alone: The front of the baselines' search.
        published: The searched trials of the published points that are confirmed.
        costs: The cost of every student.
        most: Maximum number of points of each front.
        baseline_parameters: The names of the hyperparameters that the student alone has.
    """
    points = spread(searched, costs, most)
    distilled = [*points, *(trial for trial in published if trial not in points)]
    compared: list[SearchedTrial] = []  # in the order of `distilled`
    for trial in distilled:
        cost = costs.of(trial.values)
        at_own_values = [other for other in compared if other not in alone and costs.of(other.values) <= cost]
        compared.append(most_accurate(alone, costs, cost) or [*at_own_values, trial][0])
    needed = [trial for i, trial in enumerate(compared) if trial not in compared[:i]]
    others = spread([trial for trial in alone if trial not in needed], costs, max(0, most - len(needed)))
    baselines = sorted([*needed, *others], key=lambda trial: costs.of(trial.values))
    chosen = []
    for i, (trial, baseline) in enumerate(zip(distilled, compared, strict=True), 1):
        role, key = ("published", f"published {trial.number + 1}") if trial in published else ("best", f"front {i}")
        chosen.append(Candidate(key, role, trial, trial.values, f"baseline {baselines.index(baseline) + 1}"))
    for i, trial in enumerate(baselines, 1):
        values = {name: value for name, value in trial.values.items() if name in baseline_parameters}
        chosen.append(Candidate(f"baseline {i}", "baseline", trial, values, None))
    return chosen
