"""What a teacher inherits of a searched recipe: the values of the first published point, the same in every trial."""

from collections.abc import Sequence
from typing import Any

from kdtrain.config.parameter import Values
from kdtrain.config.problems import Problem, dotted
from kdtrain.config.recipe import INHERITED
from kdtrain.config.space import parameters, resolve


def with_inherited(concrete: dict[str, Any], tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """A recipe of the tree, its teacher with the searched fields that it inherits."""
    values = inherited_values(concrete, tree, published)
    return {**concrete, "teacher": {**concrete["teacher"], **values}} if values else concrete


def inherited_values(concrete: dict[str, Any], tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """The searched fields that the teacher leaves out, as the first published point has them."""
    searched = {parameter.path[0] for parameter in parameters(tree)}
    names = [name for name in _inherited(concrete) if name in searched]
    point = resolve(tree, published[0]).tree if published and names else {}
    return {name: point[name] for name in names if name in point}


def inherited_searches(concrete: dict[str, Any], tree: Any) -> list[Problem]:
    """What is wrong where no point is published: a teacher cannot inherit a search."""
    inherited = _inherited(concrete)
    return [
        Problem(
            ("teacher", *parameter.path),
            f"is inherited from recipe.{dotted(parameter.path)}, which is searched;"
            f" write teacher.{parameter.path[0]} (or a study.published point, whose value it takes)",
        )
        for parameter in parameters(tree)
        if parameter.path[0] in inherited
    ]


def _inherited(concrete: dict[str, Any]) -> list[str]:
    """The fields that the teacher, if there is one to be trained, leaves to the recipe."""
    teacher = concrete.get("teacher")
    if not isinstance(teacher, dict) or teacher.get("file") is not None:
        return []
    return [name for name in INHERITED if teacher.get(name) is None]
