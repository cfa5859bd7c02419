"""Checks of a sweep's recipe at points that contain everything written in it, and of its study and report.

A teacher that inherits a searched field takes the value of the first published point, in every trial.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdtrain.config.budget_checks import budget_problems
from kdtrain.config.fit_checks import fit_problems
from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_recipe
from kdtrain.config.other_spellings import search_hint
from kdtrain.config.parameter import MOST_OPTIONS, ROOT, Parameter, Values, count_combinations, count_options
from kdtrain.config.problems import KeyPath, Problem, dotted, format_value, validate
from kdtrain.config.recipe import DISTILLED_ONLY, Recipe
from kdtrain.config.search_checks import compared_choice, pruner_problems, sampler_problems
from kdtrain.config.search_settings import GridSampler
from kdtrain.config.space import combinations, grid_size, parameters, probe_points, resolve, student_models
from kdtrain.config.study_settings import AT_LEAST_OF_EACH, Report, StudySettings
from kdtrain.config.teacher import INHERITED, MOST_SEEDS, OF_THE_MODEL, names_finished, with_whole_teachers
from kdtrain.config.written_teachers import Written, each_teacher, written_teachers

BUILT = ("data", "teacher", "student", "method")
SCHEDULED = ("data", "epochs", "lr_schedule", "batch_size")
"""Parts of a recipe whose options are checked in all combinations: in the latter with both ends of ranges."""
LISTS = (
    ("teacher",), ("teacher", "ensemble", "of"), ("teacher", "ensemble", "weights"), ("class_weights",),
    ("student", "hidden"),
)  # fmt: skip
"""Parts of a recipe that may be a list, which is then no list of values to search over."""


def recipe_problems(tree: dict[str, Any], published: Sequence[Values], inheriting: bool) -> list[Problem]:
    """Return every problem of the recipes that the space contains, each once, where it is written.

    `inheriting` is True if no published point defines the searched fields that a teacher inherits.
    """
    ranges = {parameter.source: parameter for parameter in parameters(tree) if parameter.kind != "choice"}
    found: dict[tuple[KeyPath, str], Problem] = {}
    data_names = set()
    for values in [*probe_points(tree), *published]:
        resolved = resolve(tree, values)
        data_names.add(format_value(_data_name(resolved.tree)))
        for problem in _problems_at(resolved.tree, tree, published, inheriting):
            hint = "" if problem.path in LISTS else search_hint(_value_at(resolved.tree, problem.path))
            problem = resolved.at_source(problem)
            text = problem.text + _range_hint(ranges.get(problem.path), problem.text) + hint
            found.setdefault((problem.path, text.partition(", got ")[0]), replace(problem, text=text))
    if len(data_names) > 1:
        names = ", ".join(sorted(data_names))
        text = f"trials on different data cannot be compared: {names}; write one sweep for each"
        found[("data",), text] = Problem(("data",), text)
    return list(found.values())


def size_problems(tree: dict[str, Any]) -> list[Problem]:
    """Return the problem of a space that is too large to be checked, if it is."""
    if (count := count_options(tree)) > MOST_OPTIONS:
        text = f"has {count:,} options of choices and bounds of ranges in all; a sweep may have {MOST_OPTIONS}"
        return [Problem((), text)]
    if (count := len(written_teachers(tree.get("teacher")))) > MOST_SEEDS:
        return [Problem(("teacher",), f"must be at most {MOST_SEEDS} networks, got {count:,}")]
    scheduled = parameters({part: tree[part] for part in SCHEDULED if part in tree})
    counts = {
        BUILT: math.prod(count_combinations(tree[part]) for part in BUILT if part in tree),
        SCHEDULED: math.prod(len(parameter.extremes) for parameter in scheduled),
    }
    for parts, count in counts.items():
        if count > MOST_OPTIONS:
            text = f"the options of {', '.join(parts)} have more than {MOST_OPTIONS} combinations"
            return [Problem((), f"{text}; write fewer, or several sweeps")]
    return []


def validate_recipe(written: Any, noun: str = "recipe") -> tuple[Recipe | None, list[Problem]]:
    """Return a recipe as it is written as a Recipe or None, and its problems; for `noun` see `validate`.

    A problem of the recipe's data is reported once, not again for each teacher that takes them.
    """
    recipe, problems = validate(Recipe, with_whole_teachers(written), noun)  # whole: a sentence names the data set
    of_data = {(problem.path, problem.text) for problem in problems if problem.path[:1] == ("data",)}

    def is_taken(problem: Problem) -> bool:
        return any((problem.path[depth:], problem.text) in of_data for depth in range(1, len(problem.path)))

    return recipe, [problem for problem in problems if not is_taken(problem)]


def teacher_problems(recipe: Recipe | None) -> list[Problem]:
    """Return the problems of the recipes by which the teachers are trained, which include inherited fields.

    Those of a teacher's teachers too.
    """
    found: list[Problem] = []
    trained: list[Recipe] = []
    for each in () if recipe is None else recipes_by_teacher(recipe):
        try:
            taught_by = teacher_recipe(each)
        except ValidationError as error:
            rules = [details.get("ctx", {}).get("error", details["msg"]) for details in error.errors()]
            found += [Problem(("teacher",), f"its own training is not valid: {rule}") for rule in rules]
            continue
        if taught_by is not None:
            trained.append(taught_by)
            found += [problem.under(("teacher",)) for problem in teacher_problems(taught_by)]
    if len(set(trained)) < len(trained):
        text = "two of its teachers are one: with what they inherit, their recipes are equal; write another seed"
        found.append(Problem(("teacher",), text))
    return list(dict.fromkeys(found))


def study_problems(study: StudySettings, tree: dict[str, Any], folders: tuple[Path, ...]) -> Iterator[Problem]:
    """Yield the settings of a study that do not fit its search space; `folders` have the user's own modules."""
    searched = parameters(tree)
    ranges = [parameter.name for parameter in searched if parameter.kind != "choice"]
    trials: KeyPath = ("study", "trials")
    yield from sampler_problems(study, tree, folders)
    yield from pruner_problems(study.pruner, tree, folders)
    if study.trials is not None and len(study.published) > study.trials:
        count = len(study.published)
        yield Problem(trials, f"must be >= {count}, the number of published points, got {study.trials}")
    yield from _select_problems(study, tree, searched)
    yield from budget_problems(study, tree)
    yield from _tradeoff_problems(study, tree)
    if not searched and study.trials is not None and study.trials > 1:
        yield Problem(trials, f"must be 1: recipe has no search space, so all trials are equal, got {study.trials}")
    if isinstance(study.sampler, GridSampler) and searched:
        points: KeyPath = ("study", "sampler", "points")
        if ranges and study.sampler.points is None:
            yield Problem(points, f"is missing: the number of values of each range ({', '.join(ranges)})")
            return
        if not ranges and study.sampler.points is not None:
            yield Problem(points, "has no effect: the recipe searches only choices; remove it")
        size = grid_size(tree, study.sampler.points)
        first = len(study.published)
        if study.trials is not None and study.trials > size + first:
            more = f" and {first} published" if first else ""
            yield Problem(trials, f"must be <= {size + first}: the grid has {size} points{more}, got {study.trials}")


def first_points_problems(
    study: StudySettings, published: Sequence[Values], defaults: Sequence[Values]
) -> Iterator[Problem]:
    """Yield a problem if a search has too few trials for the methods' defaults, or no parameter."""
    count = len(published) + sum(point not in published for point in defaults)
    if defaults == ({},):
        yield Problem(("study", "start_from"), "has no effect: the recipe has no search space; remove it")
    elif study.trials is not None and study.trials < count:
        text = f"must be >= {count}, the number of published points and of methods' defaults, got {study.trials}"
        yield Problem(("study", "trials"), text)


def _select_problems(study: StudySettings, tree: Any, searched: Sequence[Parameter]) -> Iterator[Problem]:
    """Yield the settings of the stage select that cannot be carried out, or change nothing."""
    select, place = study.select, ("study", "select")
    if study.tradeoff is not None:
        unused = sorted({"trainings", "best_of_each", "equal_trials"} & select.model_fields_set)
        text = "has no effect with study.tradeoff: the points of the front are confirmed without a race; remove it"
        yield from (Problem((*place, key), text) for key in unused)
        return
    choices = [parameter for parameter in searched if parameter.kind == "choice" and not parameter.conditions]
    compared = compared_choice(study, searched)
    if compared is None and select.best_of_each is not None:
        known = ", ".join(parameter.name for parameter in choices) or "there is none"
        text = f"must be a choice that every trial has ({known}), got {format_value(select.best_of_each)}"
        yield Problem((*place, "best_of_each"), text)
        return
    options = 0 if compared is None else len(compared.labels)
    if compared is None and "equal_trials" in select.model_fields_set:
        text = "has no effect: no options are compared; remove it, or name a choice with best_of_each"
        yield Problem((*place, "equal_trials"), text)
    if compared is not None and select.equal_trials and study.most_trials < options:
        text = f"must be >= {options}, the number of options of {compared.name} that are compared, got {study.trials}"
        yield Problem(("study", "trials"), text)
    candidates = study.most_candidates(max(options, len(student_models(tree))))  # baselines race within each model
    if select.trainings is not None and select.trainings < AT_LEAST_OF_EACH * candidates:
        least = AT_LEAST_OF_EACH * candidates
        text = (
            f"must be >= {least}, {AT_LEAST_OF_EACH} for each of up to {candidates} candidates, got {select.trainings}"
        )
        yield Problem((*place, "trainings"), text)


def _tradeoff_problems(study: StudySettings, tree: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem if all students of the space are one network: there is nothing to trade."""
    if study.tradeoff is None:
        return
    students = [resolve(tree, values).tree["student"] for values in combinations(tree, ("student",))]
    networks = {str([student.get(name) for name in (*OF_THE_MODEL, "head")]) for student in students}
    if len(networks) < AT_LEAST_OF_EACH:
        text = f"needs at least {AT_LEAST_OF_EACH} networks, otherwise there is no cost to trade accuracy for"
        got = f"recipe.student.model has only {students[0]['model']}"
        yield Problem(("study", "tradeoff"), f"{text}; {got}; write a choice of models")


def report_problems(report: Report, tree: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem if the report compares with a document about other data, with whose name its own begins."""
    names = sorted({resolve(tree, values).tree["data"]["name"] for values in combinations(tree, ("data",))})
    if report.published is not None and names != [report.published.partition("_")[0]]:
        text = f"must be a document about the recipe's data set, {', '.join(names)}, got {report.published}"
        yield Problem(("report", "published"), text)


def _problems_at(
    recipe: dict[str, Any], tree: dict[str, Any], published: Sequence[Values], inheriting: bool
) -> Iterator[Problem]:
    """Yield the problems at one point: it must distil, and it and the recipe of its teacher must be valid."""
    copies: set[KeyPath] = set()  # parts of the teacher that are copied from elsewhere, where they are checked
    method = recipe.get("method")
    if isinstance(method, dict) and method.get("name") == "none":
        text = "none is the student alone, which every sweep trains as its baseline"
        yield Problem(("method", "name"), f"{text}; to train only that use kdtrain train")
        recipe = {key: value for key, value in recipe.items() if key not in DISTILLED_ONLY}
    elif recipe.get("teacher") is None:
        text = "is missing: a sweep compares a student that has a teacher with the same student alone"
        yield Problem(("teacher",), text)
        recipe = {**recipe, "teacher": recipe.get("student")}  # so that the other checks can run
        copies.add(("teacher",))
    if inheriting:
        yield from inherited_searches(recipe, tree)
    for place, teacher in written_teachers(recipe.get("teacher")):
        copies |= {("teacher", *place, name) for name in inherited_values(teacher, tree, published)}
    model, problems = validate_recipe(with_inherited(recipe, tree, published))
    above = ({problem.path[:i] for i in range(len(problem.path) + 1)} for problem in problems)
    yield from (problem for problem, paths in zip(problems, above, strict=True) if not paths & copies)
    yield from teacher_problems(model)
    yield from fit_problems(model, recipe)


def _range_hint(parameter: Parameter | None, text: str) -> str:
    if parameter is None or ", got " not in text:
        return ""
    hint = "; for whole numbers write int or logint" if "whole number" in text else ""
    return f" in {parameter.description}{hint}"


def _value_at(tree: Any, path: KeyPath) -> Any:
    """Return the value at a path, or None if there is none."""
    for key in path:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _data_name(recipe: dict[str, Any]) -> object:
    data = recipe.get("data")
    return data.get("name") if isinstance(data, dict) else data


def with_inherited(recipe: dict[str, Any], tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """Return a recipe of the tree whose teachers have the searched fields that they inherit."""

    def filled(teacher: Written) -> Written:
        return {**teacher, **inherited_values(teacher, tree, published)}

    return {**recipe, "teacher": each_teacher(recipe["teacher"], filled)} if "teacher" in recipe else recipe


def inherited_values(teacher: Written, tree: Any, published: Sequence[Values]) -> dict[str, Any]:
    """Return the searched fields that a teacher leaves out, with the first published point's values."""
    names = [name for name in _inherited(teacher) if count_options(tree.get(name))]
    point = resolve(tree, published[0]).tree if published and names else {}
    return {name: point[name] for name in names if name in point}


def inherited_searches(recipe: dict[str, Any], tree: Any) -> list[Problem]:
    """Return the problems of a study without published points: each searched field that a teacher inherits."""
    return [
        Problem(
            ("teacher", *place, *parameter.path),
            f"is inherited from recipe.{dotted(parameter.path)}, which is searched; write"
            f" {dotted(('teacher', *place, parameter.path[0]))}, or a study.published point, whose value the teacher"
            " then takes",
        )
        for place, teacher in written_teachers(recipe.get("teacher"))
        for name in _inherited(teacher)
        for parameter in parameters(tree.get(name), ROOT.child(name))
    ]


def _inherited(teacher: Written) -> list[str]:
    """Return the fields that a teacher takes from the recipe; none if it is not trained."""
    if names_finished(teacher):
        return []
    return [name for name in INHERITED if teacher.get(name) is None]
