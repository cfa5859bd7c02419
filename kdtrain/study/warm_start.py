"""`study.warm_start`: complete trials of finished sweeps that samplers learn from before their first suggestion."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdtrain.config.parameter import Label, Parameter, Values, label_of
from kdtrain.config.problems import Problem
from kdtrain.config.recipe import DISTILLED_ONLY
from kdtrain.config.space import parameters, resolve, resolve_with
from kdtrain.config.sweep import Sweep
from kdtrain.errors import UserError
from kdtrain.methods.registry import loss_weights_of
from kdtrain.storage.folder import user_path
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.journal import StudyJournal
from kdtrain.trials.records import KnownTrial

KEY = ("study", "warm_start")


class NotInSpace(Exception):
    """A trial of another sweep has no value for a parameter of this space."""


def read_warm_start(book: Bookkeeping) -> list[KnownTrial]:
    """Return the trials of the sweeps that `study.warm_start` names.

    Which they are is read once and noted in the journal, so that a continued study does not depend on other folders.

    Raises:
        UserError: A folder cannot be used; see `known_trials`.
    """
    trials: list[KnownTrial] = []
    for i, folder in enumerate(book.sweep.study.warm_start or ()):
        event = book.journal.warm_start(folder)
        known = event["trials"] if event is not None else known_trials(book.sweep, i)
        if event is None:
            book.journal.note("warm_start", folder=folder, trials=known)
        trials += known
    return trials


def show_warm_start(book: Bookkeeping, trials: Sequence[KnownTrial]) -> None:
    """Show both searches the trials of other sweeps; in a trade-off the costs must be known."""
    for search in (book.baselines, book.search):
        search.add_history([(row["values"], row["value"]) for row in trials if row["stage"] == search.stage])


def check_warm_start(sweep: Sweep) -> list[str]:
    """Return a sentence for each absent folder of `study.warm_start`; UserError if one that is there cannot be used."""
    notes = []
    for i, folder in enumerate(sweep.study.warm_start or ()):
        if _path(sweep, i).exists():
            known_trials(sweep, i)
        else:
            notes.append(f"study.warm_start: {folder} is not there (looked for {Path.cwd() / folder})")
    return notes


def known_trials(sweep: Sweep, index: int) -> list[KnownTrial]:
    """Return the trials of a finished sweep that have a value for each parameter of this one.

    Raises:
        UserError: The folder is absent or no finished sweep's, its objective is another one, or no trial fits.
    """
    folder = (sweep.study.warm_start or ())[index]

    def refused(text: str) -> UserError:
        return sweep.located.error([Problem((*KEY, index), f"{folder} {text}")])

    path = _path(sweep, index)
    if not (path / "study.json").is_file():
        where = f"(looked for {Path.cwd() / path})"
        raise refused(f"is no folder of a sweep's results, such as results/digits_kd {where}")
    journal = StudyJournal(path)
    record = journal.study_record()
    assert record is not None
    if not any(row["event"] == "finished" for row in journal.events()):
        raise refused("has not finished; run that sweep to its end, or remove it")
    objective = record["study"]["objective"]
    if objective != sweep.study.objective:
        raise refused(f"has the objective {objective}, and this study {sweep.study.objective}")
    own = [parameter.name for parameter in sweep.parameters]
    other = [parameter["name"] for parameter in record["parameters"]]
    paths = {parameter.path for parameter in parameters(record["recipe"])}
    if not any(parameter.path in paths for parameter in sweep.parameters):
        raise refused(f"shares no searched parameter: it searches {', '.join(other)}, and this study {', '.join(own)}")
    alone = {key: value for key, value in record["recipe"].items() if key not in DISTILLED_ONLY}
    alone |= {"method": {"name": "none"}}
    found = [
        *_fitting(journal, "baselines", alone, sweep.baseline()),
        *_fitting(journal, "search", record["recipe"], sweep),
    ]
    if not any(row["stage"] == "search" for row in found):
        raise refused("has no complete trial whose parameters all have a value in this space")
    return found


def _path(sweep: Sweep, index: int) -> Path:
    """Return the folder that an item names; UserError with its line if it cannot be one."""
    folder = (sweep.study.warm_start or ())[index]
    try:
        if "://" in folder:
            raise UserError(f": must be a folder of this machine, got the URL {folder}")
        return user_path(folder, "")
    except UserError as error:
        raise sweep.located.error([Problem((*KEY, index), str(error).removeprefix(": "))]) from None


def _fitting(journal: StudyJournal, stage: str, tree: Any, sweep: Sweep) -> Iterator[KnownTrial]:
    """Yield the complete trials of a search of another sweep, whose recipe is `tree`, at their points of this space."""
    if not sweep.parameters:
        return
    for number, end in sorted(journal.ends(stage).items()):
        plan = journal.plan(stage, number)
        if end["state"] != "complete" or end["value"] is None or plan is None:
            continue
        try:
            values = _values_here(resolve(tree, plan["values"]).tree, sweep)
        except (NotInSpace, ValueError):  # ValueError: the other sweep's own space has changed
            continue
        yield {"stage": stage, "number": number, "values": values, "value": end["value"]}


def _values_here(recipe: Mapping[str, Any], sweep: Sweep) -> Values:
    """Return the values at which this space has the searched parts of a recipe; what is fixed here may differ."""

    def value_of(parameter: Parameter) -> Label:
        value = _value_at(recipe, parameter.path)
        if parameter.kind == "choice":
            value = label_of(value)
        elif isinstance(value, int) and not isinstance(value, bool) and not parameter.is_int:
            value = float(value)
        if not parameter.contains(value):
            raise NotInSpace
        return value  # type: ignore[no-any-return]

    return resolve_with(sweep.tree, value_of).values


def _value_at(recipe: Mapping[str, Any], path: Sequence[str | int]) -> Any:
    """Return the value at a path of a recipe; a weight of `balance` may be spelled in another way there."""
    value: Any = recipe
    for key in path:
        if path == ("method", "balance", key) and isinstance(value, dict) and key not in value:
            return _respelled(recipe["method"], str(key))
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            raise NotInSpace from None
    return value


def _respelled(method: Mapping[str, Any], spelling: str) -> float:
    try:
        return loss_weights_of(method["name"]).model_validate(method["balance"]).respell(spelling)
    except (ValidationError, ValueError):  # ValueError: it cannot express the two weights
        raise NotInSpace from None
