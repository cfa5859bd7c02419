"""What the owner of a sweep should know of its search and confirmation, as sentences. Nothing is trained."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import product

from kdtrain.config import space
from kdtrain.config.parameter import Label, Parameter, Values
from kdtrain.config.problems import format_unquoted
from kdtrain.config.recipe import Recipe
from kdtrain.config.search_checks import fixed_choices, folders_of, own_class
from kdtrain.config.search_settings import CmaEs, Gp, Own, Rungs, Tpe, split_by_model
from kdtrain.config.sweep import Sweep
from kdtrain.config.training import Cosine, Step
from kdtrain.errors import UserError
from kdtrain.runtime.source_code import code_digest
from kdtrain.training.optimizers import warmup_steps

SEEDS_FOR_A_VERDICT = 3
"""The number of confirming seeds from which on the report calls a difference a gain or a loss."""


def search_notes(sweep: Sweep) -> list[str]:
    """Return a sentence for each setting that does not do what one might expect."""
    return [
        *_random_parameters(sweep), *_too_few_trials(sweep), *_early_rungs(sweep), *_long_warm_ups(sweep),
        *_too_few_seeds(sweep),
    ]  # fmt: skip


def own_code(sweep: Sweep) -> dict[str, str]:
    """Return the digest of each module of the user's own from which a sampler or a pruner is taken, by its key."""
    parts = {"study.sampler": sweep.study.sampler, "study.pruner": sweep.study.pruner}
    folders = folders_of(sweep.located)
    return {
        key: code_digest(own_class(part, folders).__module__, key)
        for key, part in parts.items()
        if isinstance(part, Own)
    }


def _random_parameters(sweep: Sweep) -> Iterator[str]:
    """Yield, for each search, the parameters that the sampler draws at random."""
    sampler = sweep.study.sampler
    found: dict[str, list[str]] = {}  # by parameters: the searches
    for title, each in (("", sweep), ("the student alone", sweep.baseline())):
        for fixed in fixed_choices(each.study, each.parameters):
            _, random = split_by_model(sampler, each.parameters, fixed)
            option = ", ".join(map(format_unquoted, fixed.values()))
            if random:
                found.setdefault(", ".join(random), []).append(title or option)
    for names, searches in found.items():
        where = ", ".join(filter(None, searches))
        kind = "parameters that all trials have" if sampler.models_choices else "numbers that all trials have"
        yield (
            f"study.sampler: {sampler.name} models only {kind}; it draws at random: {names}"
            + (f" (in the search of {where})" if where and "" not in searches else "")
        )


def _too_few_trials(sweep: Sweep) -> Iterator[str]:
    """Yield a sentence if a search ends before the sampler has learned anything."""
    study = sweep.study
    if not isinstance(study.sampler, Tpe | Gp | CmaEs) or not sweep.parameters:
        return
    startup = max(study.sampler.startup_trials, 1)
    batch = study.together
    options = len(fixed_choices(study, sweep.parameters))
    first = math.ceil(startup * options / batch) * batch  # trials that are suggested before so many have ended
    if study.most_trials > first or study.warm_start:
        return
    each = f" of each of {options} options" if options > 1 else ""
    rounded = f", which batches of {batch} make {first} trials" if first != startup else ""
    yield (
        f"study.trials: with {study.trials} trials all are random: {study.sampler.name} learns from {startup}"
        f" trials{each}{rounded}; write more trials, or a smaller study.sampler.startup_trials"
    )


def _early_rungs(sweep: Sweep) -> Iterator[str]:
    """Yield the rungs that compare trials before their learning rate has done what makes them differ."""
    pruner = sweep.study.pruner
    if not isinstance(pruner, Rungs):
        return
    found: dict[str, None] = {}
    for recipe in _schedules(sweep):
        rungs = pruner.rungs(recipe.epochs)
        until, what = _undecided(recipe)
        early = [rung for rung in rungs if rung <= until]
        if early:
            many = len(early) > 3
            shown = f"{early[0]} to {early[-1]}" if many else ", ".join(map(str, early))
            epochs = f"epoch{'s' if len(early) > 1 else ''} {shown} of {recipe.epochs}"
            found[f"study.pruner: a trial can be pruned at {epochs}, {what}"] = None
    yield from found


def _long_warm_ups(sweep: Sweep) -> Iterator[str]:
    """Yield a sentence for each method whose weight is still growing when its training ends."""
    found: dict[str, None] = {}
    points = space.combinations(sweep.tree, ("method", "epochs"), largest=("warmup_epochs",))
    for values in points:
        try:
            recipe = sweep.recipe_for(values, sweep.study.seed)
        except UserError:  # values that do not go together
            continue
        warm_up = getattr(recipe.method, "warmup_epochs", 0)
        if warm_up > recipe.epochs:
            found[
                f"recipe.method: {recipe.method.name} reaches its weight after {warm_up} epochs (warmup_epochs), but a"
                f" training has {recipe.epochs}"
            ] = None
    yield from found


def _too_few_seeds(sweep: Sweep) -> Iterator[str]:
    """Yield a sentence if no difference can be called a gain or a loss."""
    seeds = sweep.study.confirm.seeds
    if seeds < SEEDS_FOR_A_VERDICT:
        few = f"{seeds} {'is' if seeds == 1 else 'are'} too few for a verdict"
        yield f"study.confirm.seeds: {few}, which needs {SEEDS_FOR_A_VERDICT}"


def _schedules(sweep: Sweep) -> Iterator[Recipe]:
    """Yield recipes with every schedule and both ends of its ranges, and with the shortest and longest training."""
    parts = ("lr_schedule", "epochs", "batch_size", "data")
    searched = [p for p in sweep.parameters if p.path[0] in parts]
    (base,) = space.combinations(sweep.tree, ())
    for chosen in product(*(parameter.extremes for parameter in searched)):
        values = dict(zip([p.name for p in searched], chosen, strict=True))
        point = space.resolve_with(sweep.tree, partial(_value_of, {**base, **values}))
        try:
            yield sweep.recipe_for(point.values, sweep.study.seed)
        except UserError:
            continue  # not valid together


def _value_of(values: Values, parameter: Parameter) -> Label:
    return values.get(parameter.name, parameter.extremes[0])


def _undecided(recipe: Recipe) -> tuple[float, str]:
    """Return the last epoch that is no fair comparison yet, 0 if there is none, and why."""
    schedule = recipe.lr_schedule
    if isinstance(schedule, Step):
        until = schedule.every_epochs if schedule.every_epochs < recipe.epochs else 0
        return until, f"before the first drop of the learning rate, after epoch {until}"
    images = recipe.data.training_images
    if isinstance(schedule, Cosine):
        epochs: float = schedule.warmup_epochs
    elif images is not None:
        steps = math.ceil(images / recipe.batch_size)
        epochs = warmup_steps(schedule, steps, recipe.epochs) / steps
    else:  # it is not known without the images, which may not be there
        epochs = 0
    return epochs, f"inside the warm-up of the learning rate, which takes {epochs:.3g} epochs"
