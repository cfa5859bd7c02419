"""Notes about a valid sweep: absent data sets and files of weights, and its search. Nothing is trained."""

import re
from collections.abc import Iterator
from pathlib import Path

from kdtrain.config import space
from kdtrain.config.needed_trainings import at_teacher, data_above, needed_trainings, teachers_above
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.data.notes import data_notes
from kdtrain.data.registry import AnyData, data_folder, load, named_data
from kdtrain.data.sampling import class_weights
from kdtrain.errors import UserError
from kdtrain.models.config import Network, WeightsFile
from kdtrain.storage.folder import user_path
from kdtrain.study.search_notes import search_notes

ABSENT = re.compile(r"recipe\.data(\.transfer)?: ")
"""The beginning of a sentence about a data set as a whole, which is absent, and not about an option."""


def input_notes(sweep: Sweep, data: str | None) -> list[str]:
    """Return a sentence for each data set and each file of weights that is absent or cannot be used, and on the search.

    Args:
        sweep: A valid sweep.
        data: Folder or URL of the data sets; None takes KDTRAIN_DATA. A URL is not downloaded.
    """
    points = space.combinations(sweep.tree, ("data", "teacher", "student"))
    recipes = [sweep.recipe_for(values, 0) for values in points]
    notes = []
    for place, config in dict.fromkeys(each for recipe in recipes for each in data_above(recipe)):
        found = [note.replace("recipe.data", place) for note in _data_notes(config, data)]
        notes += [note for note in found if note.replace(place, "recipe.data") not in notes]
    files = (note for recipe in recipes for note in _file_notes(recipe))
    return list(dict.fromkeys([*notes, *files, *search_notes(sweep)]))


def require_fitting_data(sweep: Sweep, data: str | None) -> None:
    """Raise UserError if data that are there cannot have the options of their training split, e.g. so many labels.

    Nor may a list of class weights be of another length. Arguments as for `input_notes`. Data without such options are
    not read.
    """
    if (place := named_data(data)) is not None and "://" in place:
        return
    checked = set()
    for values in space.combinations(sweep.tree, ("data", "teacher", "student", "class_weights")):
        for recipe, above in needed_trainings(sweep.recipe_for(values, 0)):
            of_data = any(getattr(recipe.data, key) is not None for key in recipe.data.newer)
            options = (recipe.data, recipe.class_weights)
            if options in checked or not (of_data or isinstance(recipe.class_weights, tuple)):
                continue
            checked.add(options)
            try:
                found = load(recipe.data, data_folder(data))
                class_weights(recipe.class_weights, found.train.labels, len(found.classes))
            except UserError as error:
                mistakes = [text for text in error.problems if not ABSENT.match(text)]
                for each in above:
                    mistakes = [at_teacher(text, each) for text in mistakes]
                if mistakes:
                    raise sweep.located_error(values, UserError(*mistakes)) from None


def _data_notes(config: AnyData, data: str | None) -> Iterator[str]:
    place = named_data(data)
    if place is not None and "://" in place:
        yield f"recipe.data: {place} is not downloaded for this check, so {config.name} was not looked for"
        return
    try:
        yield from data_notes(load(config, data_folder(data)), contents=False)
    except UserError as error:
        yield from error.problems


def _file_notes(recipe: Recipe) -> Iterator[str]:
    teachers = teachers_above(recipe)
    networks: list[tuple[str, Network]] = [*teachers, ("recipe.student", recipe.student)]
    files = [
        (f"{place}.weights.file", network.weights.file)
        for place, network in networks
        if isinstance(network.weights, WeightsFile)
    ]
    files += [(f"{place}.trained", teacher.trained) for place, teacher in teachers if teacher.trained is not None]
    for place, file in files:
        if not user_path(file, place).is_file():
            yield f"{place}: {file} is not there (looked for {Path.cwd() / user_path(file, place)})"
