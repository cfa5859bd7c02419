"""Checks that networks and class weights fit the data, as far as that is known without reading any image."""

from collections.abc import Iterator
from typing import Any

from kdtrain.config.problems import KeyPath, Problem
from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import AnyTeacher, Student, Teacher, TeacherEnsemble, networks_of
from kdtrain.config.written_teachers import path_as_written
from kdtrain.data.registry import AnyData
from kdtrain.models.registry import model

Placed = tuple[KeyPath, Student | Teacher, KeyPath, AnyData]
"""A network and the data of its training, each with its path in a recipe."""


def fit_problems(recipe: Recipe | None, written: Any) -> list[Problem]:
    """Return a problem for each network with images that are too small, or with a wrong number of class weights.

    Args:
        recipe: The recipe; None, if it is not valid, has no problems here.
        written: The same recipe as plain data, whose paths the problems have.
    """
    if recipe is None:
        return []
    found: dict[KeyPath, str] = {}
    for path, network, data_path, data in _placed_networks(recipe):
        least, (_, *sides) = model(network.model).source.smallest_side, data.image_shape
        if min(sides) < least:
            text = f"must be >= {least} for {network.model}, got {min(sides)}"
            found.setdefault((*data_path, "resolution"), text)
        weights = network.class_weights if isinstance(network, Teacher) else recipe.class_weights
        if isinstance(weights, tuple) and data.class_count not in (None, len(weights)):
            text = f"must have a weight for each of the {data.class_count} classes, got {len(weights)}"
            found[*path, "class_weights"] = text
    return [Problem(path_as_written(written, path), text) for path, text in found.items()]


def _placed_networks(recipe: Recipe) -> Iterator[Placed]:
    """Yield the student, its teachers, their teachers and so on."""

    def above(teacher: AnyTeacher | None, of: KeyPath, data_path: KeyPath, data: AnyData) -> Iterator[Placed]:
        for i, each in enumerate(networks_of(teacher)):
            path = (*of, "teacher", i) if isinstance(teacher, TeacherEnsemble) else (*of, "teacher")
            own_path, own = (data_path, data) if each.data is None else ((*path, "data"), each.data)
            yield path, each, own_path, own
            yield from above(each.teacher, path, own_path, own)

    yield (), recipe.student, ("data",), recipe.data
    yield from above(recipe.teacher, (), ("data",), recipe.data)
