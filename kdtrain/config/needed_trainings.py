"""The trainings that a recipe needs: its teachers', those of their teachers, and its own."""

import re
from collections.abc import Iterator
from typing import Any

from kdtrain.config.recipe import Recipe
from kdtrain.config.teacher import INHERITED, AnyTeacher, Student, Teacher, TeacherEnsemble, networks_of
from kdtrain.data.registry import AnyData
from kdtrain.methods.none import NoDistillation
from kdtrain.models.config import Network


def recipes_by_teacher(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the recipe once for each of its teachers, with that one as its only teacher."""
    if recipe.ensemble is None:
        return (recipe,) if recipe.teacher is not None else ()
    return tuple(recipe.model_copy(update={"teacher": teacher}) for teacher in recipe.teachers)


def teacher_recipes(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the whole recipes by which a recipe's teachers are trained, without those of finished teachers."""
    return tuple(trained_by for each in recipes_by_teacher(recipe) if (trained_by := teacher_recipe(each)) is not None)


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """Return the whole recipe by which a recipe's one teacher is trained, or None if no teacher is trained."""
    teacher = recipe.teacher
    assert not isinstance(teacher, TeacherEnsemble)
    if teacher is None or teacher.trained is not None:
        return None
    fields: dict[str, Any] = {name: getattr(teacher, name) for name in INHERITED}
    network = {name: getattr(teacher, name) for name in Network.model_fields}
    return Recipe(
        data=teacher.data or recipe.data,
        teacher=teacher.teacher,
        student=Student(**network),
        method=teacher.method or NoDistillation(name="none"),
        objective=recipe.objective,
        seed=teacher.seed,
        **{name: getattr(recipe, name) if value is None else value for name, value in fields.items()},
    )


def needed_trainings(recipe: Recipe, above: tuple[Recipe, ...] = ()) -> Iterator[tuple[Recipe, tuple[Recipe, ...]]]:
    """Yield the recipe of each training that a recipe needs, after those of its teachers, and what it is needed for.

    That are the recipe of the network which it teaches, with no other teacher, the recipe which that one is needed for,
    ..., at last the given recipe. A teacher of several networks comes once for each.
    """
    for each in recipes_by_teacher(recipe):
        if (taught_by := teacher_recipe(each)) is not None:
            yield from needed_trainings(taught_by, (each, *above))
    yield recipe, above


def chain(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of all trainings that a recipe needs, in their order: each after those of its teachers."""
    return list(dict.fromkeys(each for each, _ in needed_trainings(recipe)))


def teachers_above(recipe: Recipe) -> list[tuple[str, Teacher]]:
    """Return a recipe's teachers, their teachers and so on, each with its place: `recipe.teacher.teacher`."""

    def found(teacher: AnyTeacher | None, of: str) -> list[tuple[str, Teacher]]:
        pairs = zip(teacher_places(teacher, of), networks_of(teacher), strict=True)
        return [pair for place, each in pairs for pair in [(place, each), *found(each.teacher, place)]]

    return found(recipe.teacher, "recipe.student")


def data_above(recipe: Recipe) -> list[tuple[str, AnyData]]:
    """Return a recipe's data, those by which its teachers are trained and so on, each with its place."""
    needed = sorted(needed_trainings(recipe), key=lambda each: len(each[1]))
    found = ((f"recipe{'.teacher' * len(above)}.data", each.data) for each, above in needed)
    return list(dict.fromkeys(found))


def teacher_places(teacher: AnyTeacher | None, of: str = "recipe.student") -> list[str]:
    """Return where each teacher of the network at a place of a recipe is written: `recipe.teacher.1` if of several."""
    place = "recipe.teacher" if of == "recipe.student" else f"{of}.teacher"
    networks = networks_of(teacher)
    return [f"{place}.{i}" if isinstance(teacher, TeacherEnsemble) else place for i in range(len(networks))]


def at_teacher(text: str, recipe: Recipe) -> str:
    """Return a message about the recipe by which a recipe's one teacher is trained with the places in the recipe."""
    own_data = any(teacher.data is not None for teacher in recipe.teachers)

    def moved(place: re.Match[str]) -> str:
        if place[1] == "student":
            return "recipe.teacher"
        return place[0] if place[1] == "data" and not own_data else f"recipe.teacher.{place[1]}"

    return re.sub(r"\brecipe\.(\w+)", moved, text)
