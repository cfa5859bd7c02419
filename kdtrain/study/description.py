"""The files that describe a study: study.json, which the report reads, and best.yaml, which repeats its winner."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import cast

from kdtrain.config import space
from kdtrain.config.needed_trainings import chain, data_above
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.config.teacher import Teacher
from kdtrain.config.yaml_reader import dump_yaml
from kdtrain.data.base import Dataset
from kdtrain.data.notes import data_notes
from kdtrain.data.registry import AnyData, load
from kdtrain.errors import UserError
from kdtrain.models.build import network_size, shapes_only
from kdtrain.models.config import Network, WeightsFile
from kdtrain.models.source import ImageShape
from kdtrain.models.weights import fitting_sets
from kdtrain.study.search_notes import own_code, search_notes
from kdtrain.trials.records import NetworkSize, ParameterRecord, StudyRecord, WeightsTaken, network_name

SizedNetwork = tuple[Network, ImageShape]
"""A network of a recipe, and (C, H, W) of the images that it takes."""


def recipe_yaml(recipe: Recipe, sweep_name: str) -> str:
    """Return the winner's recipe as the text of best.yaml."""
    head = f"# The winner of the sweep {sweep_name}, with the first of its confirming seeds.\n"
    head += '# "To repeat it" in report.md has the command that trains it again.\n'
    return head + dump_yaml(recipe.model_dump(mode="json", exclude_unset=True))


def describe(sweep: Sweep, data_root: Path, earlier: StudyRecord | None = None) -> StudyRecord:
    """Return the content of study.json without its schema number.

    Measuring the networks takes seconds. Their sizes are taken from `earlier`, a study.json, if its recipe is the same.

    Raises:
        UserError: A data set is absent, or does not have what the recipe takes of it.
    """
    data, notes = _data(sweep, data_root)
    models = earlier.get("models") if earlier is not None and earlier["recipe"] == sweep.tree else None
    return {
        "name": sweep.name,
        "file": sweep.located.file,
        "overrides": list(sweep.overrides),
        "recipe": sweep.tree,
        "study": sweep.study.model_dump(mode="json"),
        "resources": sweep.resources.model_dump(mode="json"),
        "report": sweep.report.model_dump(mode="json"),
        "parameters": cast(list[ParameterRecord], [parameter.as_json() for parameter in sweep.parameters]),
        "models": models or network_sizes(sweep, len(data.classes)),
        "weights": weights_taken(networks(sweep), len(data.classes)),
        "data_notes": notes,
        "sampler_notes": search_notes(sweep),
        "own_code": own_code(sweep),
    }


def _data(sweep: Sweep, data_root: Path) -> tuple[Dataset, list[str]]:
    """Return the first data set of the space, and the notes about all; those about a teacher's own name their place."""
    found: dict[AnyData, Dataset] = {}
    notes: list[str] = []
    for values in space.combinations(sweep.tree, ("data", "teacher")):
        for place, config in data_above(sweep.recipe_for(values, 0)):
            if config not in found:
                try:
                    found[config] = load(config, data_root)
                except UserError as error:
                    problems = (text.replace("recipe.data", place) for text in error.problems)
                    raise sweep.located_error(values, UserError(*problems)) from None
                own = [note for note in data_notes(found[config]) if note not in notes]
                notes += own if place == "recipe.data" else [f"{place}: {note}" for note in own]
    return next(iter(found.values())), notes


def networks(sweep: Sweep) -> list[SizedNetwork]:
    """Return the distinct teachers and students of a sweep's space, teachers first."""
    recipes = [sweep.recipe_for(values, 0) for values in space.combinations(sweep.tree, ("teacher", "student"))]
    found = [networks_of(recipe) for recipe in recipes]
    return list(dict.fromkeys([*(each for own in found for each in own[:-1]), *(own[-1] for own in found)]))


def networks_of(recipe: Recipe) -> list[SizedNetwork]:
    """Return a recipe's teachers, their teachers, ..., and at last its student."""
    teachers: list[SizedNetwork] = [
        (teacher, teacher.image_shape(each.data.image_shape))
        for each in reversed(chain(recipe))
        for teacher in each.teachers
    ]
    return [*teachers, (recipe.student, recipe.data.image_shape)]


def weights_taken(networks: Iterable[SizedNetwork], classes: int) -> list[WeightsTaken]:
    """Return which weights each network takes of its file, unless they are the whole file.

    A file that cannot be used is left out: the preflight checks report it.
    """
    found: list[WeightsTaken] = []
    for network, shape in networks:
        if isinstance(network, Teacher) and network.trained is not None:
            file, part, weights_key = network.trained, "network", network.weights_key
        elif isinstance(network.weights, WeightsFile):
            file, part, weights_key = network.weights.file, network.weights.part, network.weights.weights_key
        else:
            continue
        with suppress(UserError):
            sets = fitting_sets(shapes_only(network, shape, classes), file, "", part, weights_key)
            taken, *others = [each.key for each in sets]
            row: WeightsTaken = {"model": network.model, "file": file, "taken": taken, "others": others}
            if taken and row not in found:
                found.append(row)
    return found


def weights_remark(row: WeightsTaken) -> str:
    """Return which weights of a file are taken, as a sentence."""
    text = f"{row['model']} takes the weights {row['taken']} of {row['file']}"
    return f"{text}; weights_key chooses others: {', '.join(row['others'])}" if row["others"] else text


def network_sizes(sweep: Sweep, classes: int) -> dict[str, NetworkSize]:
    """Return parameters and forward FLOPs of each network of the space, by its name.

    The name of a teacher with a resolution of its own is followed by it: `resnet50 at 224 px`.
    """
    found = networks(sweep)
    _, of_students = found[-1]
    named = {
        network_name(network.model_dump()) + ("" if shape == of_students else f" at {shape[1]} px"): (network, shape)
        for network, shape in found
    }
    sizes: dict[str, NetworkSize] = {}
    for name, (network, shape) in named.items():
        parameters, flops = network_size(network, shape, classes)
        sizes[name] = {"parameters": parameters, "flops_per_image": flops}
    return sizes
