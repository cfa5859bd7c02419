"""Sweeps (`recipe:` with search spaces, `study:`, `resources:`, `report:`) and plain recipes, loaded and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdtrain.config.budget_checks import missing_trials
from kdtrain.config.defaults import default_points
from kdtrain.config.fit_checks import fit_problems
from kdtrain.config.located import Located, apply_overrides, load_located, locate
from kdtrain.config.parameter import Label, Parameter, Values, check_spaces, space_kind
from kdtrain.config.problems import KeyPath, Problem, format_unquoted, format_value, placed_in_recipe, validate
from kdtrain.config.recipe import DISTILLED_ONLY, Recipe
from kdtrain.config.reference_points import match_points
from kdtrain.config.search_checks import compared_choice, folders_of
from kdtrain.config.space import combinations, parameters, resolve, resolve_with
from kdtrain.config.study_settings import Report, Resources, StudySettings, SweepFile
from kdtrain.config.sweep_checks import (
    first_points_problems,
    recipe_problems,
    report_problems,
    size_problems,
    study_problems,
    teacher_problems,
    validate_recipe,
    with_inherited,
)
from kdtrain.config.written_teachers import path_as_written
from kdtrain.errors import UserError
from kdtrain.methods.base import MethodConfig, TeacherReading

NAME = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
"""The names of sweeps. A sweep's folder has its name, so `..` or `a/b` would be a folder of someone else's."""
LONGEST_NAME = 200
ENSEMBLE_WEIGHTS = ("teacher", "ensemble", "weights")
"""The one part of a teacher that may have a range: it combines networks that are trained already."""


@dataclass(frozen=True)
class Sweep:
    """A valid sweep. Make one with `load_sweep` or `Sweep.from_dict`.

    Attributes:
        name: The name of its folder of results: the file's name without `.yaml`.
        located: The whole file as plain data, with the line of each value, after overrides.
        tree: The recipe with its search spaces, after overrides.
        study: The search: objective, trials, sampler, pruner, confirmation.
        resources: Workers, CPUs, GPUs and caches.
        report: The report's title, and the document with which it compares.
        published: The reference points of `study.published`, each as values of the search space.
        overrides: The overrides as given.
        defaults: The methods' defaults, if `study.start_from` asks for them, each as values of the search space.
    """

    name: str
    located: Located
    tree: dict[str, Any]
    study: StudySettings
    resources: Resources
    report: Report
    published: tuple[Values, ...]
    overrides: tuple[str, ...] = ()
    defaults: tuple[Values, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str, overrides: Sequence[str] = ()) -> "Sweep":
        """Return the sweep that a dict describes, checked as a file is.

        Args:
            data: The content of a sweep file: `{"recipe": {...}, "study": {"trials": 8}}`. Tuples, numbers of numpy
                and paths are accepted; the dict is not changed.
            name: The name of the folder of results. Error messages begin with it in place of file and line.
            overrides: Changes such as `["recipe.epochs=3"]`.

        Raises:
            UserError: Every mistake at once, such as `mine: recipe.method.temperature: must be > 0, got -1`.
        """
        if not isinstance(name, str) or _name_problems(name):
            wrong = _name_problems(name) if isinstance(name, str) else [f"must be a text, got {format_value(name)}"]
            raise UserError(*(f"name: {text}" for text in wrong))
        return _checked_sweep(locate(data, name), name, overrides, {})

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Every searched hyperparameter, in the order of the file."""
        return parameters(self.tree)

    @property
    def first_points(self) -> tuple[Values, ...]:
        """The points that are tried before anything is suggested: the published ones, then the methods' defaults."""
        return (*self.published, *(point for point in self.defaults if point not in self.published))

    @cached_property
    def compared(self) -> Parameter | None:
        """The choice whose options are compared with one another, or None.

        It is that of `select.best_of_each`, else the choice of methods. The student alone has none if it does not share
        the parameter.
        """
        return compared_choice(self.study, self.parameters)

    @property
    def options(self) -> tuple[str, ...]:
        """The labels of the compared options."""
        return () if self.compared is None else tuple(map(format_unquoted, self.compared.labels))

    def option(self, values: Mapping[str, Label]) -> str | None:
        """Return the label of the compared option to which values belong; None if no options are compared."""
        return None if self.compared is None else format_unquoted(values[self.compared.name])

    def recipe_for(self, values: Mapping[str, Label], seed: int) -> Recipe:
        """Return the recipe at one point of the search space.

        Args:
            values: A value for every parameter that exists at this point, by name.
            seed: The recipe's seed.

        Raises:
            UserError: These values are not valid together.
            ValueError: A value is missing, outside its space, or superfluous.
        """
        resolved = resolve(self.tree, values)
        data = with_inherited(resolved.tree, self.tree, self.published)
        recipe, problems = validate_recipe({**data, "objective": self.study.objective, "seed": seed})
        if recipe is None:
            raise self.located.error(resolved.at_source(problem).under(("recipe",)) for problem in problems)
        return recipe

    def methods(self) -> list[MethodConfig]:
        """Return the configs of the methods of the space."""
        return [self.recipe_for(values, 0).method for values in combinations(self.tree, ("method",))]

    def readings(self) -> tuple[TeacherReading, ...]:
        """Return everything that a method of the space reads of its teacher."""
        return tuple(dict.fromkeys(reading for method in self.methods() for reading in method.teacher_readings))

    def baseline(self) -> "Sweep":
        """Return the sweep of the student alone, over the hyperparameters that it shares with this space.

        The shared values of the first points remain its first points.
        """
        tree = {key: value for key, value in self.tree.items() if key not in DISTILLED_ONLY}
        tree["method"] = {"name": "none"}
        names = {parameter.name for parameter in parameters(tree)}

        def shared(points: Sequence[Values]) -> tuple[Values, ...]:
            found = [{name: value for name, value in point.items() if name in names} for point in points]
            return tuple(point for i, point in enumerate(found) if names and point not in found[:i])

        return replace(self, tree=tree, published=shared(self.published), defaults=shared(self.defaults))

    def error(self, values: Mapping[str, Label], path: KeyPath, text: str) -> UserError:
        """Return the error about one value of the recipe at a point: `error(values, ("method",), "must be ...")`."""
        resolved = resolve(self.tree, values)
        problem = resolved.at_source(Problem(path_as_written(resolved.tree, path), text))
        return self.located.error([problem.under(("recipe",))])

    def located_error(self, values: Mapping[str, Label], error: UserError) -> UserError:
        """Return an error at a point whose problems, if they name their place in the recipe, have file and line too."""
        problems: list[str] = []
        for text in error.problems:
            mistake = placed_in_recipe(text)
            problems += self.error(values, mistake.path, mistake.text).problems if mistake else [text]
        return UserError(*problems)


def load_sweep(
    file: str | Path, overrides: Sequence[str] = (), trials: int | None = None, seed: int | None = None
) -> Sweep:
    """Return the sweep in a YAML file.

    Args:
        file: The sweep file; its name without `.yaml` is the sweep's name.
        overrides: Changes such as `["recipe.epochs=3", "study.trials=8"]`; a value is YAML.
        trials: Replaces `study.trials`.
        seed: Replaces `study.seed`.

    Raises:
        UserError: Every mistake at once, such as `a.yaml:12: recipe.epochs: must be >= 1, got 0`.
    """
    return _checked_sweep(load_located(file), Path(file).stem, overrides, {"trials": trials, "seed": seed})


def load_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the plain recipe in a YAML file, such as the `best.yaml` of a sweep.

    Args:
        file: The recipe file.
        overrides: Changes such as `["epochs=3"]`; a value is YAML.

    Raises:
        UserError: Every mistake at once, such as `best.yaml:7: epochs: must be >= 1, got 0`.
    """
    return load_located_recipe(file, overrides)[0]


def load_located_recipe(file: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Located]:
    """Return what `load_recipe` does, and the file with the lines of its values."""
    return _checked_recipe(load_located(file), overrides)


def located_recipe_error(located: Located, error: UserError) -> UserError:
    """Return an error whose problems, if they name their place in a plain recipe, have file and line too."""
    problems: list[str] = []
    for text in error.problems:
        mistake = placed_in_recipe(text)
        path = path_as_written(located.data, mistake.path) if mistake else ()
        problems += located.error([Problem(path, mistake.text)]).problems if mistake else [text]
    return type(error)(*problems)


def recipe_from_dict(data: Mapping[str, Any], name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Return the plain recipe that a dict describes, checked as a file is.

    Args:
        data: The content of a recipe file: `{"data": {"name": "digits"}, ...}`.
        name: The text with which error messages begin, in place of file and line.
        overrides: Changes such as `["epochs=3"]`.

    Raises:
        UserError: Every mistake at once, such as `recipe: epochs: must be >= 1, got 0`.
    """
    return _checked_recipe(locate(data, name), overrides)[0]


def _checked_sweep(
    located: Located, name: str, overrides: Sequence[str], study_options: Mapping[str, int | None]
) -> Sweep:
    """Return the sweep, or raise all mistakes; `study_options` are values of `study` set by options of their own."""
    if "recipe" not in located.data and {"method", "student"} & set(located.data):
        command = f"; train it with: kdtrain train {located.file}" if located.has_lines else ""
        raise located.error([Problem((), f"is a plain recipe, not a sweep{command}")])
    located, problems = apply_overrides(located, overrides, SweepFile.model_fields, "recipe.epochs=3")
    for option, value in study_options.items():
        if value is not None and isinstance(located.data.get("study", {}), dict):
            located = located.with_value(("study", option), value, f"--{option}")
    parts, wrong = validate(SweepFile, located.data, "a sweep")
    problems += [*wrong, *missing_trials(located.data.get("study"))]
    tree, broken = _searchable_tree(located.data.get("recipe"))
    published: tuple[Values, ...] = ()
    if tree is not None:
        points = _published_points(located.data)
        published, wrong = match_points(tree, points)
        problems += [problem.under(("study", "published")) for problem in wrong]
        problems += [problem.under(("recipe",)) for problem in recipe_problems(tree, published, not points)]
    broken = [*located.problems, *(problem.under(("recipe",)) for problem in broken)]
    if parts and tree is not None and not problems and not broken:
        problems += [*study_problems(parts.study, tree, folders_of(located)), *report_problems(parts.report, tree)]
    defaults: tuple[Values, ...] = ()
    if parts and tree is not None and not problems and not broken and parts.study.start_from == "defaults":
        defaults, wrong = default_points(tree)
        problems += [*wrong, *first_points_problems(parts.study, published, defaults)]
    problems += [Problem((), text) for text in _name_problems(name)]
    if parts is None or tree is None or problems or broken:
        raise located.error([*broken, *_without_consequences(problems, broken)])
    return Sweep(name, located, tree, parts.study, parts.resources, parts.report, published, tuple(overrides), defaults)


def _checked_recipe(located: Located, overrides: Sequence[str]) -> tuple[Recipe, Located]:
    if "recipe" in located.data and "method" not in located.data:
        command = f"; run it with: kdtrain sweep {located.file}" if located.has_lines else ""
        raise located.error([Problem((), f"is a sweep, not a plain recipe{command}")])
    located, refused = apply_overrides(located, overrides, Recipe.model_fields, "epochs=3")
    tree, wrong = check_spaces(located.data)
    spaces = [Problem(p.source, "is a search space; a plain recipe takes one value", p.path) for p in parameters(tree)]
    broken = [*located.problems, *refused, *wrong, *spaces]
    resolved = resolve_with(tree, lambda parameter: parameter.extremes[0])
    recipe, wrong = validate_recipe(resolved.tree, "a recipe")
    wrong += [*teacher_problems(recipe), *fit_problems(recipe, resolved.tree)]
    problems = [resolved.at_source(problem) for problem in wrong]
    if recipe is None or problems or broken:
        raise located.error([*broken, *_without_consequences(problems, broken)])
    return recipe, located


def _name_problems(name: str) -> list[str]:
    rule = "the sweep's name (its file's, without .yaml) names its folder of results; it"
    if not NAME.fullmatch(name):
        return [f"{rule} may have letters, digits, _, -, and dots but not at its ends; got {format_value(name)}"]
    if len(name) > LONGEST_NAME:
        return [f"{rule} must have at most {LONGEST_NAME} characters, got {len(name)}"]
    if name == "trials":
        return [f"{rule} must not be trials: that folder holds the trials of all sweeps"]
    return []


def _searchable_tree(written: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the recipe's tree with valid spaces, or None, and the problems found before any value is tried."""
    if not isinstance(written, dict):
        return None, []  # the check of the whole file reports it
    if space_kind(written):
        return None, [Problem((), "cannot be a search space as a whole; write the spaces inside it")]
    misplaced = [key for key in ("objective", "seed") if key in written]
    problems = [Problem((key,), f"belongs to the study; write study.{key}") for key in misplaced]
    tree, wrong = check_spaces({key: value for key, value in written.items() if key not in misplaced})
    problems += wrong
    if not isinstance(tree, dict):
        return None, problems
    if too_large := size_problems(tree):
        return None, [*problems, *too_large]
    for parameter in parameters(tree):
        part = parameter.path[0]
        if part in ("teacher", "data") and parameter.kind != "choice" and parameter.path[:3] != ENSEMBLE_WEIGHTS:
            text = f"must be a value or a choice: a range in {part} would train a teacher for every trial"
            problems.append(Problem(parameter.source, text, parameter.path))
    return tree, problems


def _published_points(data: dict[str, Any]) -> Sequence[Any]:
    """Return the published points as written, or [None] if they are not a list."""
    study = data.get("study")
    points = study.get("published", []) if isinstance(study, dict) else None
    return points if isinstance(points, list) else [None]


def _without_consequences(problems: Sequence[Problem], broken: Sequence[Problem]) -> list[Problem]:
    """Drop problems at or below a broken value: a broken space, for example, is not a valid number either."""
    paths = {problem.path for problem in broken}
    return [p for p in problems if not any(p.path[:i] in paths for i in range(1, len(p.path) + 1))]
