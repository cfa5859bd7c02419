"""Upper bounds of what a sweep costs, and which teacher outputs its trials share. Needs no data and no Ray."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kdtrain.config import space
from kdtrain.config.budget_checks import share_end
from kdtrain.config.needed_trainings import chain, recipes_by_teacher
from kdtrain.config.recipe import Recipe
from kdtrain.config.search_checks import longest_training
from kdtrain.config.sweep import Sweep
from kdtrain.data.registry import AnyData
from kdtrain.study.search import Search
from kdtrain.study.selection import most_rounds, race_trainings
from kdtrain.study.smoke import PARTS
from kdtrain.study.step_cost import image_flops, image_seconds, made_up_teacher
from kdtrain.study.teachers import TEACHER_PARTS
from kdtrain.study.tradeoff import student_recipes
from kdtrain.teacher.cache_policy import bytes_per_image, reads_whole_batch, reason_not_cached

OF_BATCHES = ("batch_size", "sampler", "labelled_share")
"""The fields of a recipe that decide its batches, with the seed."""
COMBINED = (("teacher", "ensemble", "combine"), ("teacher", "ensemble", "weights"))
"""Parts of a teacher that combine its outputs after they are read."""


@dataclass(frozen=True)
class StageCost:
    """The upper bound of a stage's cost: training images, FLOPs, and seconds on this machine, of all its trainings.

    `timed` says how the seconds of an image were found.
    """

    stage: str
    images: int
    flops: float
    seconds: float
    timed: str


@dataclass(frozen=True)
class CachedOutputs:
    """Teacher outputs that all trials of a node share.

    `streams` and `epochs` are the numbers of seeds and epochs whose views differ. `total_bytes` is None if the number
    of images is unknown. `fits` is False if the cache holds fewer bytes.
    """

    bytes_per_image: int
    streams: int
    epochs: int
    total_bytes: int | None
    fits: bool


@dataclass(frozen=True)
class Sharing:
    """The teacher outputs computed once, the reasons why others run live, and the parameters that split the cache."""

    cached: tuple[CachedOutputs, ...]
    live: tuple[str, ...]
    splitting: tuple[str, ...]


def trainings(sweep: Sweep) -> dict[str, int]:
    """Return the upper bound of the number of trainings of each stage; for a budget see `searched_trials`."""
    points = space.combinations(sweep.tree, TEACHER_PARTS)
    teachers = {each for values in points for each in chain(sweep.recipe_for(values, 0))[:-1]}
    students = {recipe.student for recipe in _reachable(sweep, ("student",))}  # each may need a baseline
    confirm = sweep.study.confirm
    published = len(sweep.published) if confirm.published else 0
    if sweep.study.tradeoff is None:
        best, baselines = max(1, len(sweep.options)), len(students)
    else:  # a front has at most one point of each student
        most, all_students = sweep.study.select.candidates, len(student_recipes(sweep))
        best, baselines = min(most, all_students), min(most + published, all_students)
    confirmed = best + published + baselines
    searched = searched_trials(sweep)
    return {
        "teacher": len(teachers),
        **searched,
        "select": sum(race_bounds(sweep)[1] for trials in searched.values() if trials > 1),
        "confirm": confirmed * confirm.seeds,
    }


def searched_trials(sweep: Sweep) -> dict[str, int]:
    """Return the number of trials of each search.

    A budget of epochs limits it to what fits if no trial is pruned. If only a budget of time limits it, it is that of
    the first batch.
    """
    study = sweep.study
    searches = {"baselines": Search("baselines", sweep.baseline()), "search": Search("search", sweep)}
    most = study.most_trials
    if study.budget is not None and study.budget.epochs is not None:
        share = share_end("search", study.budget.epochs, 0)
        trainings = int(share // longest_training(sweep.tree))
        alone = searches["baselines"].trials == 1
        fitting = trainings - 1 if alone else trainings // 2
        most = fitting // study.together * study.together
    elif study.trials is None:
        most = study.together
    return {stage: min(search.trials, most) for stage, search in searches.items()}


def race_bounds(sweep: Sweep) -> tuple[int, int]:
    """Return the upper bounds of the candidates and of the trainings of a race; for a budget see `searched_trials`.

    There is no race with a trade-off.
    """
    if sweep.study.tradeoff is not None:
        return 0, 0
    trials = searched_trials(sweep)["search"]
    groups = max(len(sweep.options), len(space.student_models(sweep.tree)))  # baselines race within each model
    candidates = min(trials, sweep.study.most_candidates(groups))
    of_trials = trials if sweep.study.budget is not None else sweep.study.most_trials
    return candidates, race_trainings(sweep.study.select.trainings, of_trials, candidates)


STEP, OUTPUTS, BOTH = (1, 0), (0, 1), (1, 1)
"""What counts of an image in a stage: its step, the teacher's outputs, or both, as for a teacher that is distilled."""


def stage_costs(
    sweep: Sweep, images: int, classes: int, images_of: Callable[[AnyData], int] | None = None
) -> list[StageCost]:
    """Return the upper bound of each stage's cost.

    `images` are those of a student's training, and `images_of` counts those of a teacher's data, if they are others.
    Every training is counted as the most expensive one of the space, and none as pruned. Reading images, validation and
    start-up are left out. A budget of epochs bounds all stages together.
    """
    counts, epochs = trainings(sweep), _most_epochs(sweep)
    reachable = list(_reachable(sweep, (*PARTS, "r_drop")))
    distilled = _most_expensive(reachable, classes)
    alone = _most_expensive(_reachable(sweep.baseline(), ("data", "student", "r_drop")), classes)
    images_of = images_of or (lambda data: images)
    teachers = [each for recipe in reachable for each in chain(recipe)[:-1]]
    taught_by = max(teachers, key=lambda each: _training_flops(each, images_of(each.data), classes), default=None)
    teacher = max(reachable, key=lambda recipe: image_flops(recipe, classes).teacher)
    of_teachers = taught_by.epochs * images_of(taught_by.data) if taught_by else 0
    students: list[tuple[str, Recipe | None, int, tuple[int, int]]] = [
        ("baselines", alone, counts["baselines"] * epochs * images, STEP),
        ("search to confirm", distilled, _after_baselines(counts) * epochs * images, STEP),
    ]
    if (budget := sweep.study.budget) is not None and budget.epochs is not None:
        students = [("baselines to confirm", distilled, budget.epochs * images, STEP)]
    possible = [
        ("teacher", taught_by, counts["teacher"] * of_teachers, BOTH),
        *students,
        ("teacher outputs", teacher, teacher_images(sweep, images, classes), OUTPUTS),
    ]
    work = [(stage, recipe, seen, parts) for stage, recipe, seen, parts in possible if recipe is not None and seen > 0]
    seconds = image_seconds((recipe for _, recipe, _, _ in work), classes, sweep.resources.cpus_per_worker)
    costs = []
    for stage, recipe, seen, parts in work:
        cost, timing = image_flops(recipe, classes), seconds[recipe]
        flops, own_s = (parts[0] * each.step + parts[1] * each.teacher for each in (cost, timing))
        costs.append(StageCost(stage, seen, seen * flops, seen * own_s, timing.how))
    return costs


def _training_flops(recipe: Recipe, images: int, classes: int) -> float:
    return recipe.epochs * images * sum(image_flops(recipe, classes))


def sharing(sweep: Sweep, images: int | None, classes: int) -> Sharing:
    """Return what trials share of their teachers' outputs, if `resources.teacher_cache` allows it."""
    bytes_of, live = _cached_and_live(sweep, images, classes)
    cached = []
    for recipe, size in bytes_of.items():
        streams, epochs = _streams(sweep, recipe), _epochs_of_views(sweep, recipe)
        total = size * (images or 0) * epochs * streams
        fits = total <= sweep.resources.cache_bytes
        cached.append(CachedOutputs(size, streams, epochs, None if images is None else total, fits))
    splits = ["teacher", "data", *(name for name in ("mixup", "precision") if name in sweep.tree)]
    if any(reads_whole_batch(recipe.method.teacher_readings) for recipe in bytes_of):
        splits += OF_BATCHES
    splitting = tuple(
        parameter.name
        for parameter in sweep.parameters
        if parameter.path[0] in splits and parameter.path[:3] not in COMBINED
    )
    return Sharing(tuple(dict.fromkeys(cached)), tuple(dict.fromkeys(live.values())), splitting)


def teacher_images(sweep: Sweep, images: int, classes: int) -> int:
    """Return the upper bound of the number of training images that teachers compute outputs of; an ensemble is one.

    Cached outputs are computed once for each view, live ones in every training.
    """
    counts = trainings(sweep)
    in_every_training = _after_baselines(counts) * _most_epochs(sweep) * images
    if (budget := sweep.study.budget) is not None and budget.epochs is not None:
        in_every_training = budget.epochs * images
    cached, live = _cached_and_live(sweep, images, classes)
    if live or sweep.resources.teacher_cache == "none":
        return in_every_training
    groups = {_cache_group(recipe): (recipe, size) for recipe, size in cached.items()}
    views = [(_streams(sweep, recipe) * _epochs_of_views(sweep, recipe), size) for recipe, size in groups.values()]
    if images * sum(count * size for count, size in views) > sweep.resources.cache_bytes:
        return in_every_training  # later views replace earlier ones in the cache
    return min(images * sum(count for count, _ in views), in_every_training)


def _cache_group(recipe: Recipe) -> tuple[object, ...]:
    """Return what recipes must have in common to share cached outputs."""
    drawing = recipe.drawing if reads_whole_batch(recipe.method.teacher_readings) else None
    return recipe.teachers, recipe.data, recipe.mixup, recipe.precision, drawing


def _cached_and_live(sweep: Sweep, images: int | None, classes: int) -> tuple[dict[Recipe, int], dict[Recipe, str]]:
    """Return the cached bytes per image and view of each combination, and the reason of each that caches nothing."""
    cached: dict[Recipe, int] = {}
    live: dict[Recipe, str] = {}
    for recipe in _reachable(sweep, (*PARTS, "mixup", "precision", *OF_BATCHES)):
        without_student = recipe.model_copy(update={"student": None})
        found = _bytes_or_reason(without_student, classes, images or 0, sweep.resources.cache_bytes)
        if isinstance(found, str):
            live[recipe] = found
        else:
            cached[recipe] = found
    return cached, live


@lru_cache(maxsize=256)
def _bytes_or_reason(recipe: Recipe, classes: int, images: int, budget_bytes: int) -> int | str:
    """Return the cached bytes per image and view of all its teachers, or the reason why nothing is cached.

    No student is needed.
    """
    readings, total = recipe.method.teacher_readings, 0
    for each in recipes_by_teacher(recipe):
        outputs = made_up_teacher(each, classes)
        reason = reason_not_cached(outputs, readings, images, budget_bytes)
        if reason is not None:
            return reason
        total += bytes_per_image(outputs, readings)
    return total


def _after_baselines(counts: Mapping[str, int]) -> int:
    return counts["search"] + counts["select"] + counts["confirm"]


def _streams(sweep: Sweep, recipe: Recipe) -> int:
    """Return the number of seeds whose views differ: those of search, rounds and confirmation, or one for all."""
    of_batch = reads_whole_batch(recipe.method.teacher_readings)
    random = recipe.data.random_views or recipe.mixup is not None or of_batch
    candidates, trainings = race_bounds(sweep)
    return 1 + most_rounds(trainings, candidates) + sweep.study.confirm.seeds if random else 1


def _epochs_of_views(sweep: Sweep, recipe: Recipe) -> int:
    return _most_epochs(sweep) if _streams(sweep, recipe) > 1 else 1


def _most_epochs(sweep: Sweep) -> int:
    return max(sweep.recipe_for(values, 0).epochs for values in space.probe_points(sweep.tree))


def _reachable(sweep: Sweep, parts: Sequence[str]) -> Iterator[Recipe]:
    """Yield a recipe for each combination of these parts; every other parameter has its first or lowest value."""
    return (sweep.recipe_for(values, 0) for values in space.combinations(sweep.tree, parts))


def _most_expensive(recipes: Iterable[Recipe], classes: int) -> Recipe | None:
    return max(recipes, key=lambda recipe: image_flops(recipe, classes).step, default=None)
