"""Searched fields that a teacher inherits: it takes their values from the first published point, in every trial."""

from collections.abc import Sequence
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.problems import Problem, dotted
from kdtrain.config.recipe import INHERITED
from kdtrain.config.space import parameters, resolve


def with_inherited(recipe: dict[str, Any], tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """Return a recipe of the tree whose teacher has the searched fields that it inherits."""
    values = inherited_values(recipe, tree, published)
    return {**recipe, "teacher": {**recipe["teacher"], **values}} if values else recipe


def inherited_values(recipe: dict[str, Any], tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """Return the searched fields that the teacher leaves out, with the first published point's values."""
    searched = {parameter.path[0] for parameter in parameters(tree)}
    names = [name for name in _inherited(recipe) if name in searched]
    point = resolve(tree, published[0]).tree if published and names else {}
    return {name: point[name] for name in names if name in point}


def inherited_searches(recipe: dict[str, Any], tree: Any) -> list[Problem]:
    """Return the problems of a study without published points: each searched field that the teacher inherits."""
    inherited = _inherited(recipe)
    return [
        Problem(
            ("teacher", *parameter.path),
            f"is inherited from recipe.{dotted(parameter.path)}, which is searched; write teacher.{parameter.path[0]},"
            " or a study.published point, whose value the teacher then takes",
        )
        for parameter in parameters(tree)
        if parameter.path[0] in inherited
    ]


def _inherited(recipe: dict[str, Any]) -> list[str]:
    """Return the fields that the teacher takes from the recipe; none if it is not trained."""
    teacher = recipe.get("teacher")
    if not isinstance(teacher, dict) or teacher.get("file") is not None:
        return []
    return [name for name in INHERITED if teacher.get(name) is None]
