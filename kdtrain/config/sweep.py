"""The sweep file: `recipe:` with spaces in it, `study:`, `resources:`, `report:`; every mistake at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdtrain.config.error_messages import validate
from kdtrain.config.located import Located, load_located
from kdtrain.config.overrides import overridden
from kdtrain.config.parameter import Label, Parameter, Values, space_word
from kdtrain.config.problems import Keys, Problem
from kdtrain.config.recipe import Recipe
from kdtrain.config.reference_points import match_all
from kdtrain.config.space import combinations, grid_size, parameters, probe_points, resolve
from kdtrain.config.space_checks import checked
from kdtrain.config.study_settings import GridSampler, NoPruner, Report, Resources, Study, SweepFile
from kdtrain.config.sweep_checks import problems_at_probes, teacher_problems
from kdtrain.config.teacher_defaults import with_inherited
from kdtrain.errors import UserError
from kdtrain.methods.base import TeacherReading


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked. `tree` is its recipe as written, with spaces, after --set."""

    name: str
    located: Located
    tree: dict[str, Any]
    study: Study
    resources: Resources
    report: Report
    published: tuple[Values, ...]  # study.published as parameter values
    overrides: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> list[Parameter]:
        return parameters(self.tree)

    def recipe_for(self, values: Mapping[str, Label], seed: int) -> Recipe:
        """The recipe at one point of the space. UserError where just these values do not go together."""
        resolved = resolve(self.tree, values)
        concrete = with_inherited(resolved.tree, self.tree, self.published)
        concrete = {**concrete, "objective": self.study.objective, "seed": seed}
        recipe, problems = validate(Recipe, concrete, "recipe")
        if recipe is None:
            raise self.located.error(resolved.at_source(problem).below(("recipe",)) for problem in problems)
        return recipe

    def readings(self) -> tuple[TeacherReading, ...]:
        """What any method of the space reads of its teacher."""
        methods = [self.recipe_for(values, 0).method for values in combinations(self.tree, ("method",))]
        return tuple(dict.fromkeys(reading for method in methods for reading in method.teacher_readings))

    def baseline(self) -> "Sweep":
        """The student alone, searched over what it shares with the space, published values first."""
        tree = {key: value for key, value in self.tree.items() if key != "teacher"}
        tree["method"] = {"name": "none"}
        names = {parameter.name for parameter in parameters(tree)}
        shared = [{name: value for name, value in point.items() if name in names} for point in self.published]
        published = tuple(point for i, point in enumerate(shared) if names and point not in shared[:i])
        return replace(self, tree=tree, published=published)

    def error(self, values: Mapping[str, Label], path: Keys, text: str) -> UserError:
        """A sentence about one value of the recipe at a point: `error(values, ("method",), ...)`."""
        problem = resolve(self.tree, values).at_source(Problem(path, text))
        return self.located.error([problem.below(("recipe",))])

    def line_of(self, keys: Keys) -> int:
        """The line of ("recipe", "method"); 0 for what was set on the command line."""
        return self.located.line_of(keys)


def load_sweep(
    file: str | Path, overrides: Sequence[str] = (), trials: int | None = None, seed: int | None = None
) -> Sweep:
    """Reads and checks a sweep file; an override is `recipe.epochs=3`. UserError names every mistake."""
    located = load_located(file)
    if "recipe" not in located.data and {"method", "student"} & set(located.data):
        raise UserError(f"{file}: is a plain recipe, not a sweep; train it with: python -m kdtrain {file}")
    located, problems = overridden(located, overrides, SweepFile.model_fields, "recipe.epochs=3")
    for name, value in (("trials", trials), ("seed", seed)):
        if value is not None and isinstance(located.data.get("study", {}), dict):
            located = located.with_value(("study", name), value, f"--{name}")
    parts, wrong = validate(SweepFile, located.data, "a sweep")
    problems += wrong
    tree, broken = _checked_recipe(located.data.get("recipe"))
    published: tuple[Values, ...] = ()
    if tree is not None:
        points = _published_points(located.data)
        published, wrong = match_all(tree, points)
        problems += [problem.below(("study", "published")) for problem in wrong]
        wrong = problems_at_probes(tree, published, inheriting=not points)
        problems += [problem.below(("recipe",)) for problem in wrong]
    broken = [*located.problems, *(problem.below(("recipe",)) for problem in broken)]
    if parts and tree is not None and not problems and not broken:
        problems += [*_study_problems(parts.study, tree), *_report_problems(parts.report, tree)]
    if Path(file).stem == "trials":
        problems.append(Problem((), "a sweep cannot be called trials: that folder of the results holds every trial"))
    if parts is None or tree is None or problems or broken:
        raise located.error([*broken, *_not_echoing(problems, broken)])
    settings = (parts.study, parts.resources, parts.report)
    return Sweep(Path(file).stem, located, tree, *settings, published, tuple(overrides))


def load_recipe(file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a plain recipe, such as the best.yaml of a sweep; an override is `epochs=3`."""
    located = load_located(file)
    if "recipe" in located.data and "method" not in located.data:
        raise UserError(f"{file}: is a sweep, not a plain recipe; run it with: python run_sweep.py {file}")
    located, refused = overridden(located, overrides, Recipe.model_fields, "epochs=3")
    tree, wrong = checked(located.data)
    spaces = [Problem(p.source, "is a search space; a plain recipe takes one value", p.path) for p in parameters(tree)]
    broken = [*located.problems, *refused, *wrong, *spaces]
    resolved = resolve(tree, probe_points(tree)[0])
    recipe, wrong = validate(Recipe, resolved.tree, "a recipe")
    problems = [resolved.at_source(problem) for problem in [*wrong, *teacher_problems(recipe)]]
    if recipe is None or problems or broken:
        raise located.error([*broken, *_not_echoing(problems, broken)])
    return recipe


def _checked_recipe(written: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The tree that can be searched, if there is one, and what is wrong with it before any value is tried."""
    if not isinstance(written, dict):
        return None, []  # said elsewhere
    if space_word(written):
        return None, [Problem((), "cannot itself be a search space; choose inside it")]
    elsewhere = [key for key in ("objective", "seed") if key in written]
    problems = [Problem((key,), f"stands in the study; write study.{key}") for key in elsewhere]
    tree, wrong = checked({key: value for key, value in written.items() if key not in elsewhere})
    problems += wrong
    if not isinstance(tree, dict):
        return None, problems
    for parameter in parameters(tree):
        part = parameter.path[0]
        if part in ("teacher", "data") and parameter.kind != "choice":
            text = f"only choices can stand in {part}: a range would train a teacher for every trial"
            problems.append(Problem(parameter.source, text, parameter.path))
    return tree, problems


def _published_points(data: dict[str, Any]) -> Sequence[Any]:
    """The published points as written; [None] where something else stands in their place."""
    study = data.get("study")
    points = study.get("published", []) if isinstance(study, dict) else None
    return points if isinstance(points, list) else [None]


def _not_echoing(problems: Sequence[Problem], broken: Sequence[Problem]) -> list[Problem]:
    """Without what only follows from a value that is broken already (a broken space is no number either)."""
    places = {problem.keys for problem in broken}
    return [p for p in problems if not any(p.keys[:i] in places for i in range(1, len(p.keys) + 1))]


def _report_problems(report: Report, tree: dict[str, Any]) -> Iterator[Problem]:
    """A document's table stands only beside what was measured on its data."""
    names = sorted({resolve(tree, values).tree["data"]["name"] for values in probe_points(tree)})
    if report.published is not None and names != [report.published]:
        text = f"must be of the recipe's data, {', '.join(names)}, got {report.published}"
        yield Problem(("report", "published"), text)


def _study_problems(study: Study, tree: dict[str, Any]) -> Iterator[Problem]:
    """What does not fit between a study and its space."""
    searched = parameters(tree)
    ranges = [parameter.name for parameter in searched if parameter.kind != "choice"]
    longest = max(resolve(tree, values).tree["epochs"] for values in probe_points(tree))
    trials: Keys = ("study", "trials")
    if not isinstance(study.pruner, NoPruner) and study.pruner.min_epochs >= longest:
        text = f"must be below recipe.epochs {longest}, else nothing is ever pruned, got {study.pruner.min_epochs}"
        yield Problem(("study", "pruner", "min_epochs"), text)
    if len(study.published) > study.trials:
        yield Problem(trials, f"must be >= {len(study.published)}, the published points, got {study.trials}")
    if not searched and study.trials > 1:
        yield Problem(trials, f"must be 1: recipe has no search space, so all trials are equal, got {study.trials}")
    if isinstance(study.sampler, GridSampler) and searched:
        points: Keys = ("study", "sampler", "points")
        if ranges and study.sampler.points is None:
            yield Problem(points, f"is missing: how many values of each range ({', '.join(ranges)})")
            return
        if not ranges and study.sampler.points is not None:
            yield Problem(points, "does nothing: the recipe searches only choices; remove it")
        size = grid_size(tree, study.sampler.points)
        first = len(study.published)
        if study.trials > size + first:
            more = f" and {first} published" if first else ""
            yield Problem(trials, f"must be <= {size + first}: the grid has {size} points{more}, got {study.trials}")
