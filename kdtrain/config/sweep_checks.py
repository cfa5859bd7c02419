"""What is wrong with the recipes that a space can reach: it is tried where that touches everything written."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from kdtrain.config.error_messages import validate
from kdtrain.config.parameter import Parameter, Values
from kdtrain.config.problems import Keys, Problem, shown_value
from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.config.space import parameters, probe_points, resolve
from kdtrain.config.teacher_defaults import inherited_searches, inherited_values, with_inherited


def problems_at_probes(tree: dict[str, Any], published: Sequence[Values], inheriting: bool) -> list[Problem]:
    """Each mistake once, where it is written. `inheriting`: no published point says what a teacher inherits."""
    ranges = {parameter.source: parameter for parameter in parameters(tree) if parameter.kind != "choice"}
    found: dict[tuple[Keys, str], Problem] = {}
    data_names = set()
    for values in [*probe_points(tree), *published]:
        resolved = resolve(tree, values)
        data_names.add(shown_value(_data_name(resolved.tree)))
        for problem in _problems_at(resolved.tree, tree, published, inheriting):
            problem = resolved.at_source(problem)
            text = problem.text + _of_range(ranges.get(problem.keys), problem.text)
            found.setdefault((problem.keys, text.partition(", got ")[0]), replace(problem, text=text))
    if len(data_names) > 1:
        text = f"trials on different data cannot be compared: {', '.join(sorted(data_names))}; write a sweep for each"
        found[("data",), text] = Problem(("data",), text)
    return list(found.values())


def teacher_problems(recipe: Recipe | None) -> list[Problem]:
    """The teacher's own recipe is a recipe too: what it inherits must suit what it does not."""
    if recipe is None:
        return []
    try:
        teacher_recipe(recipe)
    except ValidationError as error:
        rules = [details.get("ctx", {}).get("error", details["msg"]) for details in error.errors()]
        return [Problem(("teacher",), f"trained by its own recipe: {rule}") for rule in rules]
    return []


def _problems_at(
    concrete: dict[str, Any], tree: dict[str, Any], published: Sequence[Values], inheriting: bool
) -> Iterator[Problem]:
    """What is wrong with one recipe: it must distil, and be valid, and so must the recipe of its teacher."""
    copied: set[Keys] = set()  # where the teacher holds what stands, and is checked, elsewhere
    method = concrete.get("method")
    if isinstance(method, dict) and method.get("name") == "none":
        text = "none is the student alone, which every sweep trains as its baseline"
        yield Problem(("method", "name"), f"{text}; to train only that: python -m kdtrain")
        concrete = {key: value for key, value in concrete.items() if key != "teacher"}
    elif concrete.get("teacher") is None:
        text = "is missing: a sweep compares a student that has a teacher with the same student alone"
        yield Problem(("teacher",), text)
        concrete = {**concrete, "teacher": concrete.get("student")}  # fit for the other checks
        copied.add(("teacher",))
    if inheriting:
        yield from inherited_searches(concrete, tree)
    copied |= {("teacher", name) for name in inherited_values(concrete, tree, published)}
    recipe, wrong = validate(Recipe, with_inherited(concrete, tree, published), "recipe")
    yield from (problem for problem in wrong if not {problem.keys[:1], problem.keys[:2]} & copied)
    yield from teacher_problems(recipe)


def _of_range(parameter: Parameter | None, text: str) -> str:
    if parameter is None or ", got " not in text:
        return ""
    hint = "; for whole numbers write int or logint" if "whole number" in text else ""
    return f" in {parameter.shown}{hint}"


def _data_name(concrete: dict[str, Any]) -> object:
    data = concrete.get("data")
    return data.get("name") if isinstance(data, dict) else data
