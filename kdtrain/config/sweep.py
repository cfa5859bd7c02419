"""The sweep file: `recipe:` with spaces in it, `study:`, `resources:`, `report:`; every mistake at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdtrain.config.located import (
    Keys,
    Located,
    Problem,
    dotted,
    load_located,
    parse_value,
    shown_value,
    validate,
)
from kdtrain.config.recipe import INHERITED, Objective, Recipe, teacher_recipe
from kdtrain.config.space import (
    Label,
    Parameter,
    Resolved,
    Values,
    checked,
    grid_size,
    match,
    parameters,
    probe_points,
    resolve,
    space_word,
)
from kdtrain.errors import UserError
from kdtrain.fields import Config, Count, NonNegative

Natural = Annotated[int, Field(ge=0)]


class Tpe(Config):
    """Tree-structured Parzen estimator; the first `startup_trials` are drawn at random."""

    name: Literal["tpe"]
    startup_trials: Natural = 10


class RandomSampler(Config):
    """Every trial drawn on its own."""

    name: Literal["random"]


class GridSampler(Config):
    """Every combination, in the order of the file; each range gives `points` values from end to end."""

    name: Literal["grid"]
    points: Annotated[int, Field(ge=2)] | None = None


class Asha(Config):
    """Successive halving: at min_epochs, and each `reduction` times later, the best 1/reduction go on."""

    name: Literal["asha"]
    min_epochs: Count
    reduction: Annotated[int, Field(ge=2)] = 3


class Median(Config):
    """A trial whose best so far is below the median of earlier trials at that epoch ends."""

    name: Literal["median"]
    startup_trials: Natural = 5
    min_epochs: Count = 1


class NoPruner(Config):
    """Every trial trains all its epochs."""

    name: Literal["none"]


class Confirm(Config):
    """How many of the best recipes are trained again, and with how many seeds each."""

    best: Count = 2
    seeds: Count = 5
    published: Annotated[bool, Field(description="whether the published points are trained again too")] = True


class Study(Config):
    """What is asked of the recipe's space."""

    objective: Objective = "val/accuracy"
    trials: Count
    sampler: Annotated[Tpe | RandomSampler | GridSampler, Field(discriminator="name")] = Tpe(name="tpe")
    pruner: Annotated[Asha | Median | NoPruner, Field(discriminator="name")] = NoPruner(name="none")
    published: tuple[dict[str, Any], ...] = Field(
        (), description="values of the recipe; first in the search, never pruned"
    )
    confirm: Confirm = Confirm()
    seed: Annotated[int, Field(ge=0, lt=1_000_000)] = 0
    order: Literal["batches", "free"] = Field("batches", description="free: faster on a cluster, not repeatable")
    batch: Count = Field(4, description="how many suggestions are drawn at once")

    @model_validator(mode="after")
    def _batch_in_batches(self) -> Self:
        if self.order == "free" and "batch" in self.model_fields_set:
            raise ValueError("batch does nothing with order free; remove it")
        return self


class Resources(Config):
    """How fast, never what."""

    workers: Annotated[Count, Field(description="processes that train one trial together")] = 1
    cpus_per_worker: Count = 1
    gpus_per_worker: NonNegative = 0.0
    concurrent_trials: Literal["auto"] | Count = "auto"

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.gpus_per_worker > 1 and not float(self.gpus_per_worker).is_integer():
            raise ValueError(f"gpus_per_worker must be whole above 1, got {self.gpus_per_worker}")
        return self


class Report(Config):
    """What stands on top of the report."""

    title: str | None = None


class SweepFile(Config):
    """The four parts of the file; the recipe is checked for itself, since it has spaces in it."""

    recipe: dict[str, Any]
    study: Study
    resources: Resources = Resources()
    report: Report = Report()


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
        concrete = _with_teacher(resolved.tree, _first_published(self.tree, self.published))
        concrete |= {"objective": self.study.objective, "seed": seed}
        recipe, problems = validate(Recipe, concrete, "recipe")
        if recipe is None:
            raise self.located.error(_at_source(problem, resolved).below(("recipe",)) for problem in problems)
        return recipe

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
        problem = _at_source(Problem(path, text), resolve(self.tree, values))
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
    located, problems = _overridden(located, overrides)
    for name, value in (("trials", trials), ("seed", seed)):
        if value is not None and isinstance(located.data.get("study", {}), dict):
            located = located.with_value(("study", name), value, f"--{name}")
    parts, wrong = validate(SweepFile, located.data, "a sweep")
    problems += wrong
    tree, broken = _checked_recipe(located.data.get("recipe"))
    published: tuple[Values, ...] = ()
    if tree is not None:
        points = parts.study.published if parts else _raw_published(located.data)
        published, unmatched = _matched(tree, points)
        problems += unmatched
        wrong = _at_probes(tree, published, inheriting=not points)
        problems += [problem.below(("recipe",)) for problem in wrong]
    broken = [*located.problems, *(problem.below(("recipe",)) for problem in broken)]
    if parts and tree is not None and not problems and not broken:
        problems += _study_problems(parts.study, tree)
    if Path(file).stem == "trials":
        problems.append(Problem((), "a sweep cannot be called trials: that folder of the results holds every trial"))
    if parts is None or tree is None or problems or broken:
        raise located.error([*broken, *_not_echoing(problems, broken)])
    return Sweep(
        Path(file).stem,
        located,
        tree,
        parts.study,
        parts.resources,
        parts.report,
        published,
        tuple(overrides),
    )


def load_recipe(file: str | Path) -> Recipe:
    """Reads and checks a plain recipe, such as the best.yaml of a sweep."""
    located = load_located(file)
    if "recipe" in located.data and "method" not in located.data:
        raise UserError(f"{file}: is a sweep, not a plain recipe; run it with: python run_sweep.py {file}")
    tree, wrong = checked(located.data)
    spaces = [Problem(p.source, "is a search space; a plain recipe takes one value", p.path) for p in parameters(tree)]
    broken = [*located.problems, *wrong, *spaces]
    resolved = resolve(tree, probe_points(tree)[0])
    recipe, wrong = validate(Recipe, resolved.tree, "a recipe")
    problems = [_at_source(problem, resolved) for problem in [*wrong, *_teacher_problems(recipe)]]
    if recipe is None or problems or broken:
        raise located.error([*broken, *_not_echoing(problems, broken)])
    return recipe


def _overridden(located: Located, overrides: Sequence[str]) -> tuple[Located, list[Problem]]:
    problems = []
    for override in overrides:
        path, equals, text = override.partition("=")
        place = f"--set {path}"
        try:
            keys = _override_keys(located.data, path, equals)
            located = located.with_value(keys, parse_value(text, place), place)
        except ValueError as error:
            located = replace(located, places={**located.places, (place,): place})
            problems.append(Problem((place,), str(error), ()))
    return located, problems


def _override_keys(data: dict[str, Any], path: str, equals: str) -> Keys:
    if not equals or not all(path.split(".")):
        raise ValueError("must be written as recipe.epochs=3")
    keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
    if keys[0] not in SweepFile.model_fields:
        inside = [part for part, value in data.items() if isinstance(value, dict) and keys[0] in value]
        hint = f"; did you mean {inside[0]}.{path}?" if inside else ""
        raise ValueError(f"must begin with {', '.join(f'{part}.' for part in SweepFile.model_fields)}{hint}")
    node: Any = data
    for i, key in enumerate(keys):
        word = space_word(node) if i > 1 else None
        if word and key != word:
            here = dotted(keys[:i])
            inside_it = f"; for one option write {here}.choice.0.{dotted(keys[i:])}" if word == "choice" else ""
            raise ValueError(f"{here} is a search space, {shown_value(node)}: set it whole{inside_it}")
        if isinstance(node, dict):
            node = node.get(str(key))
        else:
            node = node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None
    return keys


def _checked_recipe(written: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The tree that can be searched, if there is one, and what is wrong with it before any value is tried."""
    if not isinstance(written, dict):
        return None, []  # said elsewhere
    if space_word(written):
        return None, [Problem((), "cannot itself be a search space; choose inside it")]
    problems = [
        Problem((key,), f"stands in the study; write study.{key}") for key in ("objective", "seed") if key in written
    ]
    tree, wrong = checked({key: value for key, value in written.items() if key not in ("objective", "seed")})
    problems += wrong
    for parameter in parameters(tree):
        if parameter.path[0] in ("teacher", "data") and parameter.kind != "choice":
            where = parameter.path[0]
            text = f"only choices can stand in {where}: a range would train a teacher for every trial"
            problems.append(Problem(parameter.source, text, parameter.path))
    return tree, problems


def _raw_published(data: dict[str, Any]) -> Sequence[Any]:
    """The published points of a file with other mistakes; [None] if it cannot be told what they are."""
    study = data.get("study")
    points = study.get("published", []) if isinstance(study, dict) else None
    return points if isinstance(points, list) else [None]


def _matched(tree: dict[str, Any], points: Sequence[Any]) -> tuple[tuple[Values, ...], list[Problem]]:
    found, problems = [], []
    for i, point in enumerate(points):
        if not isinstance(point, dict):
            continue  # said elsewhere
        values, wrong = match(tree, point)
        problems += [problem.below(("study", "published", i)) for problem in wrong]
        if not wrong and values in found:
            problems.append(Problem(("study", "published", i), "repeats an earlier published point"))
        elif not wrong:
            found.append(values)
    return tuple(found), problems


def _at_probes(tree: dict[str, Any], published: Sequence[Values], inheriting: bool) -> list[Problem]:
    """What is wrong with the recipes that the space can reach, tried where they touch all that is written."""
    filled = _first_published(tree, published)
    ranges = {parameter.source: parameter for parameter in parameters(tree) if parameter.kind != "choice"}
    found: dict[tuple[Keys, str], Problem] = {}
    names = set()
    for values in [*probe_points(tree), *published]:
        resolved = resolve(tree, values)
        concrete, problems = _comparable(resolved.tree)
        if inheriting:
            problems += _inherited_search(tree, concrete)
        whole = _with_teacher(concrete, filled)
        recipe, wrong = validate(Recipe, whole, "recipe")
        wrong = [problem for problem in wrong if not _copied(problem.keys, whole, resolved.tree)]
        for problem in [*problems, *wrong, *_teacher_problems(recipe)]:
            problem = _at_source(problem, resolved)
            text = problem.text + _of_range(ranges.get(problem.keys), problem.text)
            found.setdefault((problem.keys, text.partition(", got ")[0]), replace(problem, text=text))
        names.add(shown_value(_data_name(concrete)))
    if len(names) > 1:
        text = f"trials on different data cannot be compared: {', '.join(sorted(names))}; write a sweep for each"
        found[("data",), text] = Problem(("data",), text)
    return list(found.values())


def _copied(keys: Keys, whole: dict[str, Any], written: dict[str, Any]) -> bool:
    """Whether a problem lies in what the teacher took from elsewhere, where it is reported already."""
    own = written.get("teacher")
    if keys[:1] != ("teacher",) or whole.get("teacher") is own:
        return False
    return not isinstance(own, dict) or (
        len(keys) > 1 and own.get(str(keys[1])) is None and keys[1] in whole["teacher"]
    )


def _of_range(parameter: Parameter | None, text: str) -> str:
    if parameter is None or ", got " not in text:
        return ""
    hint = "; for whole numbers write int or logint" if "whole number" in text else ""
    return f" in {parameter.kind} [{parameter.low!r}, {parameter.high!r}]{hint}"


def _data_name(concrete: dict[str, Any]) -> object:
    data = concrete.get("data")
    return data.get("name") if isinstance(data, dict) else data


def _comparable(concrete: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A recipe of a sweep distils: made fit for the other checks, and what is wrong if it does not."""
    method, teacher = concrete.get("method"), concrete.get("teacher")
    if isinstance(method, dict) and method.get("name") == "none":
        text = "none is the student alone, which every sweep trains as its baseline"
        text += "; to train only that: python -m kdtrain"
        return {key: value for key, value in concrete.items() if key != "teacher"}, [Problem(("method", "name"), text)]
    if teacher is None:
        text = "is missing: a sweep compares a student that has a teacher with the same student alone"
        return {**concrete, "teacher": concrete.get("student")}, [Problem(("teacher",), text)]
    return concrete, []


def _with_teacher(concrete: dict[str, Any], searched: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with a teacher that inherits searched fields from the first published point."""
    teacher = concrete.get("teacher")
    inherited = {name: searched[name] for name in _inherited(teacher) if name in searched}
    return {**concrete, "teacher": {**teacher, **inherited}} if isinstance(teacher, dict) and inherited else concrete


def _inherited(teacher: Any) -> list[str]:
    if not isinstance(teacher, dict) or teacher.get("file") is not None:
        return []
    return [name for name in INHERITED if teacher.get(name) is None]


def _first_published(tree: dict[str, Any], published: Sequence[Values]) -> dict[str, Any]:
    """The inheritable fields that are searched, as the first published point has them."""
    if not published:
        return {}
    searched = {parameter.path[0] for parameter in parameters(tree)}
    concrete = resolve(tree, published[0]).tree
    return {name: concrete[name] for name in INHERITED if name in searched}


def _inherited_search(tree: dict[str, Any], concrete: dict[str, Any]) -> list[Problem]:
    inherited = _inherited(concrete.get("teacher"))
    return [
        Problem(
            ("teacher", *parameter.path),
            f"is inherited from recipe.{dotted(parameter.path)}, which is searched;"
            f" write teacher.{parameter.path[0]} (or a study.published point, whose value it takes)",
        )
        for parameter in parameters(tree)
        if parameter.path[0] in inherited
    ]


def _teacher_problems(recipe: Recipe | None) -> list[Problem]:
    """The teacher's own recipe is a recipe too: what it inherits must suit what it does not."""
    if recipe is None:
        return []
    try:
        teacher_recipe(recipe)
    except ValueError as error:
        texts = [str(details["ctx"]["error"]) for details in getattr(error, "errors", list)() if "ctx" in details]
        return [Problem(("teacher",), f"trained by its own recipe: {text}") for text in texts or [str(error)]]
    return []


def _at_source(problem: Problem, resolved: Resolved) -> Problem:
    """A problem of a concrete recipe, at the place in the file that the value came from."""
    keys = problem.keys
    while keys not in resolved.sources:
        keys = keys[:-1]
    return Problem((*resolved.sources[keys], *problem.keys[len(keys) :]), problem.text, problem.keys)


def _not_echoing(problems: Sequence[Problem], broken: Sequence[Problem]) -> list[Problem]:
    """Without what only follows from a value that is broken already (a broken space is no number either)."""
    places = {problem.keys for problem in broken}
    return [p for p in problems if not any(p.keys[:i] in places for i in range(1, len(p.keys) + 1))]


def _study_problems(study: Study, tree: dict[str, Any]) -> Iterator[Problem]:
    """What does not fit between a study and its space."""
    searched = parameters(tree)
    ranges = [parameter.name for parameter in searched if parameter.kind != "choice"]
    longest = max(resolve(tree, values).tree["epochs"] for values in probe_points(tree))
    trials: Keys = ("study", "trials")
    if not isinstance(study.pruner, NoPruner) and study.pruner.min_epochs >= longest:
        text = f"must be below recipe.epochs {longest}, else nothing is ever pruned"
        text += f", got {study.pruner.min_epochs}"
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
