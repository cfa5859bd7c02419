"""The trade-off between the objective and the student's cost: what students cost, and which recipes are confirmed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult
from kdtrain.models.build import network_size
from kdtrain.study.confirm import confirmed_published, note_winner
from kdtrain.study.front import Costs, StudentKey, front, front_candidates, student_key
from kdtrain.study.jobs import JobStream
from kdtrain.study.selection import Candidate, SearchedTrial

if TYPE_CHECKING:
    from kdtrain.study.study import Study


def measure_costs(study: "Study") -> JobStream:
    """Give both searches the cost of every student; latencies that the journal lacks are measured one by one.

    Raises:
        NoResult: A measurement broke.
    """
    if study.sweep.study.tradeoff is None:
        return
    recipes = student_recipes(study.sweep)
    if study.sweep.study.tradeoff.cost == "latency_ms":
        yield from _measure_latencies(study, list(recipes.values()))
    costs = Costs(student_choices(study.sweep), {key: _cost(study, recipe) for key, recipe in recipes.items()})
    study.search.costs = study.baselines.costs = costs


def student_choices(sweep: Sweep) -> tuple[str, ...]:
    """Return the names of the choices that decide which student a trial has."""
    return tuple(each.name for each in sweep.parameters if each.kind == "choice" and each.path[0] == "student")


def student_recipes(sweep: Sweep) -> dict[StudentKey, Recipe]:
    """Return a recipe of every student of a sweep."""
    names = student_choices(sweep)
    points = space.combinations(sweep.tree, ("student",))
    return {student_key(names, values): sweep.recipe_for(values, sweep.study.seed) for values in points}


def fix_fronts(study: "Study", searched: Sequence[SearchedTrial], alone: Sequence[SearchedTrial]) -> list[Candidate]:
    """Return what is confirmed; note both fronts and the winner, the most accurate point, and write best.yaml."""
    tradeoff, costs = study.sweep.study.tradeoff, study.search.costs
    assert tradeoff is not None
    assert costs is not None
    fronts = {"search": front(searched, costs), "baselines": front(alone, costs)}
    candidates = front_candidates(
        fronts["search"],
        fronts["baselines"],
        confirmed_published(study, searched),
        costs,
        study.sweep.study.select.candidates,
        [parameter.name for parameter in study.baselines.sweep.parameters],
    )
    confirmed = {(each.trial.key, each.role == "baseline"): each.key for each in candidates}
    sign = 1 if study.maximize else -1
    for race, points in fronts.items():
        study.journal.note(
            "front",
            race=race,
            cost=tradeoff.cost,
            points=[
                {
                    "candidate": trial.key,
                    "trial_id": trial.trial_id,
                    "value": sign * trial.ranking_key[0] if trial.ranking_key else None,
                    "cost": costs.of(trial.values),
                    "confirmed": confirmed.get((trial.key, race == "baselines")),
                }
                for trial in points
            ],
        )
        listed = ", ".join(f"{trial.key} ({costs.of(trial.values):,.4g})" for trial in points)
        study.remarks.append(f"front, {race}, cheapest first, with {tradeoff.cost}: {listed}")
    note_winner(study, candidates, fronts["search"][-1])
    return candidates


def _measure_latencies(study: "Study", recipes: Sequence[Recipe]) -> JobStream:
    study.stage, study.stage_size = "latency", len(recipes)
    for number, recipe in enumerate(recipes):
        if study.journal.latency_ms(recipe.student) is not None:
            continue  # measured at an earlier start, or the same network with other weights
        job = study.job("latency", number, recipe, kind="latency")
        yield from study.run([job])
        if study.ends[job.key]["state"] == "broken":
            raise NoResult(f"latency: not measured: {study.summary([study.ends[job.key]])}")
        student = recipe.student
        about = {"model": student.model, "head": student.head, "channels_last": student.channels_last}
        study.journal.note("latency", **about, **study.measurements[job.key])


def _cost(study: "Study", recipe: Recipe) -> float:
    assert study.sweep.study.tradeoff is not None
    cost = study.sweep.study.tradeoff.cost
    if cost == "latency_ms":
        latency_ms = study.journal.latency_ms(recipe.student)
        assert latency_ms is not None
        return latency_ms
    data = study.workspace.dataset(recipe.data)
    parameters, flops = network_size(recipe.student, data.image_shape, len(data.classes))
    return float(parameters if cost == "parameters" else flops)
