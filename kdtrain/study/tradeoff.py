"""The trade-off between the objective and the student's cost: what students cost, and which recipes are confirmed."""

from collections.abc import Sequence

from kdtrain.config import space
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult
from kdtrain.models.build import network_size
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.confirm import confirmed_published, note_winner
from kdtrain.study.front import Costs, StudentKey, front, front_candidates, student_key
from kdtrain.study.jobs import JobStream
from kdtrain.study.journal import timed_network
from kdtrain.study.selection import Candidate, SearchedTrial


def measure_costs(book: Bookkeeping) -> JobStream:
    """Give both searches the cost of every student; latencies that the journal lacks are measured one by one.

    Raises:
        NoResult: A measurement broke.
    """
    if book.sweep.study.tradeoff is None:
        return
    recipes = student_recipes(book.sweep)
    if book.sweep.study.tradeoff.cost == "latency_ms":
        yield from _measure_latencies(book, list(recipes.values()))
    costs = Costs(student_choices(book.sweep), {key: _cost(book, recipe) for key, recipe in recipes.items()})
    book.search.costs = book.baselines.costs = costs


def student_choices(sweep: Sweep) -> tuple[str, ...]:
    """Return the names of the choices that decide which student a trial has."""
    return tuple(each.name for each in sweep.parameters if each.kind == "choice" and each.path[0] == "student")


def student_recipes(sweep: Sweep) -> dict[StudentKey, Recipe]:
    """Return a recipe of every student of a sweep."""
    names = student_choices(sweep)
    points = space.combinations(sweep.tree, ("student",))
    return {student_key(names, values): sweep.recipe_for(values, sweep.study.seed) for values in points}


def fix_fronts(book: Bookkeeping, searched: Sequence[SearchedTrial], alone: Sequence[SearchedTrial]) -> list[Candidate]:
    """Return what is confirmed; note both fronts and the winner, the most accurate point, and write best.yaml."""
    tradeoff, costs = book.sweep.study.tradeoff, book.search.costs
    assert tradeoff is not None
    assert costs is not None
    fronts = {"search": front(searched, costs), "baselines": front(alone, costs)}
    candidates = front_candidates(
        fronts["search"],
        fronts["baselines"],
        confirmed_published(book, searched),
        costs,
        book.sweep.study.select.candidates,
        [parameter.name for parameter in book.baselines.sweep.parameters],
    )
    confirmed = {(each.trial.key, each.role == "baseline"): each.key for each in candidates}
    sign = 1 if book.maximize else -1
    for race, points in fronts.items():
        book.journal.note(
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
        listed = ", ".join(f"{trial.key} ({costs.of(trial.values):,.6g})" for trial in points)
        book.remarks.append(f"front, {race}, cheapest first, with {tradeoff.cost}: {listed}")
    note_winner(book, candidates, fronts["search"][-1])
    return candidates


def _measure_latencies(book: Bookkeeping, recipes: Sequence[Recipe]) -> JobStream:
    book.stage, book.stage_size = "latency", len(recipes)
    for number, recipe in enumerate(recipes):
        if book.journal.latency_ms(recipe.student) is not None:
            continue  # measured at an earlier start, or the same network with other weights
        job = book.job("latency", number, recipe, kind="latency")
        yield from book.run([job])
        if book.ends[job.key]["state"] == "broken":
            raise NoResult(f"latency: not measured: {book.summary([book.ends[job.key]])}")
        book.journal.note("latency", **timed_network(recipe.student), **book.measurements[job.key])


def _cost(book: Bookkeeping, recipe: Recipe) -> float:
    assert book.sweep.study.tradeoff is not None
    cost = book.sweep.study.tradeoff.cost
    if cost == "latency_ms":
        latency_ms = book.journal.latency_ms(recipe.student)
        assert latency_ms is not None
        return latency_ms
    data = book.workspace.dataset(recipe.data)
    parameters, flops = network_size(recipe.student, data.image_shape, len(data.classes))
    return float(parameters if cost == "parameters" else flops)
