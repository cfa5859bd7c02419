"""Checks of a study's sampler and pruner against its search space, and of classes of the user's own."""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from kdtrain.config.located import Located
from kdtrain.config.parameter import Label, Parameter
from kdtrain.config.problems import KeyPath, Problem, format_value
from kdtrain.config.search_settings import (
    AnyPruner,
    CmaEs,
    GridSampler,
    Own,
    OwnSampler,
    RandomSampler,
    Rungs,
    split_by_model,
)
from kdtrain.config.space import combinations, parameters, resolve
from kdtrain.config.study_settings import StudySettings
from kdtrain.runtime.own_classes import argument_names, argument_problems, error_text, load_class

SAMPLER: KeyPath = ("study", "sampler")
PRUNER: KeyPath = ("study", "pruner")
GIVEN = {"seed": 0}
"""What a sampler is given beside the arguments in the file."""


def own_class(part: Own, folders: tuple[Path, ...]) -> type:
    """Return the class that a sampler or a pruner names; ValueError with a sentence if there is none."""
    return _loaded(part.name, isinstance(part, OwnSampler), folders)


def construct(part: Own, folders: tuple[Path, ...], **given: Any) -> Any:
    """Return an instance of the class that a sampler or a pruner names, without Optuna's warnings of experiments."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return own_class(part, folders)(**part.arguments, **given)


def folders_of(located: Located) -> tuple[Path, ...]:
    """Return where the user's own modules are looked for: beside the sweep file, and in the working folder."""
    beside = (Path(located.file).absolute().parent,) if located.has_lines else ()
    return tuple(dict.fromkeys((*beside, Path.cwd())))


def longest_training(tree: dict[str, Any]) -> int:
    """Return the largest number of epochs that a recipe of the space has."""
    points = combinations({"epochs": tree["epochs"]}, ("epochs",), largest=("epochs",))
    return max(int(resolve({"epochs": tree["epochs"]}, values).tree["epochs"]) for values in points)


def compared_choice(study: StudySettings, searched: Sequence[Parameter]) -> Parameter | None:
    """Return the choice whose options are compared with one another, or None; a trade-off has none."""
    if study.tradeoff is not None:
        return None
    select = study.select
    names = ("method", "method.name") if select.best_of_each is None else (select.best_of_each,)
    choices = [each for each in searched if each.kind == "choice" and not each.conditions]
    return next((each for each in choices if each.name in names), None)


def fixed_choices(study: StudySettings, searched: Sequence[Parameter]) -> list[dict[str, Label]]:
    """Return, for each search that is made by itself, the choices that are the same in all its trials."""
    compared = compared_choice(study, searched) if study.select.equal_trials else None
    return [{}] if compared is None else [{compared.name: label} for label in compared.labels]


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from logging below WARNING for a while: it logs a line for each study."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def sampler_problems(study: StudySettings, tree: dict[str, Any], folders: tuple[Path, ...]) -> Iterator[Problem]:
    """Yield what is wrong with a study's sampler for this space."""
    sampler = study.sampler
    yield from _warm_start_problems(study, tree)
    if isinstance(sampler, OwnSampler):
        wrong = list(_own_problems(sampler, SAMPLER, folders, GIVEN))
        yield from wrong
        if study.tradeoff is not None and not wrong:
            yield from _front_problems(construct(sampler, folders, **GIVEN), sampler.name)
        return
    if study.tradeoff is not None and not sampler.several_objectives:
        yield _no_front(sampler.name)
    if isinstance(sampler, CmaEs) and importlib.util.find_spec("cmaes") is None:
        yield Problem((*SAMPLER, "name"), "cmaes needs a package that is not installed; pip install cmaes")
    searched = parameters(tree)
    if searched and not any(split_by_model(sampler, searched, fixed)[0] for fixed in fixed_choices(study, searched)):
        kinds = "parameter" if sampler.models_choices else "number"
        names = ", ".join(parameter.name for parameter in searched)
        text = f"must be another: no {kinds} is common to all trials, so {sampler.name} would draw {names} at random"
        yield Problem((*SAMPLER, "name"), f"{text}; choices: tpe, random, grid; got {sampler.name}")


def _warm_start_problems(study: StudySettings, tree: dict[str, Any]) -> Iterator[Problem]:
    place: KeyPath = ("study", "warm_start")
    folders = study.warm_start or ()
    if folders and isinstance(study.sampler, RandomSampler | GridSampler | CmaEs):
        learns = "from its own trials only" if isinstance(study.sampler, CmaEs) else "from no trial"
        yield Problem(place, f"has no effect with sampler {study.sampler.name}, which learns {learns}; remove it")
    if folders and not parameters(tree):
        yield Problem(place, "has no effect: the recipe has no search space; remove it")
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            yield Problem((*place, i), f"repeats {format_value(folder)}")


def _front_problems(sampler: Any, name: str) -> Iterator[Problem]:
    """Yield a problem if a sampler of the user's own refuses a study of two objectives."""
    import optuna

    try:
        with quiet_optuna():
            study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
            study.ask().suggest_float("x", 0.0, 1.0)
    except Exception as error:
        yield _no_front(f"{name} ({error_text(error)})")


def _no_front(name: str) -> Problem:
    text = "must be a sampler for two objectives, because study.tradeoff is written; choices: tpe, gp, random, grid,"
    return Problem((*SAMPLER, "name"), f"{text} optuna.samplers:NSGAIISampler; got {name}")


def pruner_problems(pruner: AnyPruner, tree: dict[str, Any], folders: tuple[Path, ...]) -> Iterator[Problem]:
    """Yield what is wrong with a pruner for trainings of this length."""
    if isinstance(pruner, Own):
        yield from _own_problems(pruner, PRUNER, folders, {})
    if not isinstance(pruner, Rungs):
        return
    longest = longest_training(tree)
    key, value = pruner.start
    if not pruner.rungs(longest):
        most = (
            f"recipe.epochs {longest}" if key == "min_epochs" else f"{(longest - 1) / longest:.3f} ({longest} epochs)"
        )
        yield Problem((*PRUNER, key), f"must be below {most}, otherwise no trial is pruned, got {value:g}")
    elif key == "min_share" and pruner.compares_epochs and any(each.path == ("epochs",) for each in parameters(tree)):
        text = f"cannot be used if recipe.epochs is searched: {pruner.name} compares trials at the same epoch"
        yield Problem((*PRUNER, key), f"{text}; write min_epochs, or name asha or hyperband; got {value:g}")


def _own_problems(part: Own, place: KeyPath, folders: tuple[Path, ...], given: dict[str, Any]) -> Iterator[Problem]:
    try:
        found = own_class(part, folders)
    except ValueError as error:
        yield Problem((*place, "name"), str(error))
        return
    names = argument_names(found)
    wrong = [(key, "is set by the study; remove it") for key in given if key in part.arguments]
    if missing := [key for key in given if names is not None and key not in names]:
        text = f"the constructor of {found.__name__} must have the argument {missing[0]}: every suggestion makes a"
        wrong.append(
            ("name", f"{text} sampler of its own, seeded by the trial's number, so that a study can be repeated")
        )
    else:
        wrong += argument_problems(found, {**part.arguments, **given})
    yield from (Problem((*place, key), text) for key, text in wrong)
    if not wrong:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some of Optuna's own are experimental
                construct(part, folders, **given)
        except Exception as error:
            yield Problem(place, f"{found.__name__} refuses its arguments: {error_text(error)}")


@cache
def _loaded(name: str, is_sampler: bool, folders: Sequence[Path]) -> type:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    return load_class(name, cast(type, BaseSampler if is_sampler else BasePruner), folders)
