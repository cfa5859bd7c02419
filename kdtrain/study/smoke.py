"""The stage `smoke`: one real batch of every combination that the space can reach, before any long training."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdtrain.config import space
from kdtrain.config.needed_trainings import at_teacher, needed_trainings
from kdtrain.config.parameter import Values
from kdtrain.config.problems import placed_in_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep
from kdtrain.errors import UserError
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import Job, JobStream
from kdtrain.trials.records import JobEnd, MemoryRecord

PARTS = ("data", "method", "teacher", "student")
"""The parts of a recipe that must fit together: preflight checks try each of their combinations."""
MEMORY_PARTS = (*PARTS, "mixup", "r_drop", "optimizer", "ema", "precision")
"""The parts of a recipe whose options differ in memory: preflight checks measure each of their combinations, with the
largest batch size."""


def run_smoke(book: Bookkeeping) -> JobStream:
    """Try a real batch of every combination of the parts that must fit together, and measure the memory.

    Raises:
        UserError: A combination cannot run.
    """
    sweep = book.sweep
    students: list[_Check] = []
    teachers: dict[Recipe, _Check] = {}  # those that are distilled themselves
    for values in preflight_points(sweep):
        for recipe, above in needed_trainings(sweep.recipe_for(values, sweep.study.seed)):
            if not above:
                students.append(_Check(recipe, values, above))
            elif recipe.teacher is not None:
                teachers.setdefault(recipe, _Check(recipe, values, above))
    checks = {_job(book, number, check): check for number, check in enumerate([*students, *teachers.values()])}
    passed = _passed_checks(book)
    yield from book.run_stage([job for job in checks if job.trial_id not in passed])
    problems: list[str] = []
    for job, check in checks.items():
        end = book.ends.get(job.key)
        if end is not None and end["state"] == "broken":
            problems += _problems(book, check, end)
    if problems:
        raise UserError(*problems)
    now = _passed_checks(book)
    book.memory = most_memory([now.get(job.trial_id) for job, check in checks.items() if not check.above])


@dataclass(frozen=True)
class _Check:
    """A recipe that is tried at a point of the space: a student's, or that of a teacher which is distilled itself.

    `above` are the recipes that a teacher is trained for: that of the teacher which it teaches, ..., the student's.
    """

    recipe: Recipe
    values: Values
    above: tuple[Recipe, ...]


def _job(book: Bookkeeping, number: int, check: _Check) -> Job:
    """Return the job of a check; UserError, with its line, if a file of weights is absent."""
    try:
        return book.job("smoke", number, check.recipe, check.values, kind="smoke")
    except UserError as error:
        raise book.sweep.located_error(check.values, error) from None


def _problems(book: Bookkeeping, check: _Check, end: JobEnd) -> Sequence[str]:
    """Return the problems of a check that broke, each at its place in the file."""
    recipe, reason, place = check.recipe, str(end["reason"]), "recipe.method"
    for above in check.above:
        reason, place = at_teacher(reason, above), at_teacher(place, above)
    if (mistake := placed_in_recipe(reason)) and not end.get("traceback"):
        return book.sweep.error(check.values, mistake.path, mistake.text).problems
    what = f"{recipe.method.name} with student {recipe.student.model}"
    what += "".join(f" and teacher {teacher.model}" for teacher in recipe.teachers)
    text = f"{what} fails on its first batch: {reason}{book.traceback_of(end)}"
    return book.sweep.error(check.values, tuple(place.split(".")[1:]), text).problems


def preflight_points(sweep: Sweep) -> list[Values]:
    """Return the values that preflight checks try, without combinations that are no valid recipe."""
    points = space.combinations(sweep.tree, MEMORY_PARTS, largest=("batch_size",))
    return [values for values in points if _is_valid(sweep, values)]


def most_memory(measured: Sequence[MemoryRecord | None]) -> MemoryRecord | None:
    """Return the most memory of all measurements on the smallest of their GPUs; None if one is missing."""
    known = [each for each in measured if each is not None]
    if not known or len(known) < len(measured):
        return None
    return {
        "device": ", ".join(sorted({each["device"] for each in known})),
        "process_bytes": max(each["process_bytes"] for each in known),
        "gpu_bytes": max(each["gpu_bytes"] for each in known),
        "gpu_total_bytes": min(each["gpu_total_bytes"] for each in known),
    }


def _passed_checks(book: Bookkeeping) -> dict[str, MemoryRecord | None]:
    """Return what earlier checks on this kind of device have measured, by trial_id; None if they did not."""
    ends = [end for end in book.journal.ends("smoke").values() if end["state"] == "complete" and end["trial_id"]]
    found = {str(end["trial_id"]): end.get("memory") for end in ends}
    if book.on_gpu is None:
        return found
    on_gpu = book.on_gpu
    return {key: memory for key, memory in found.items() if memory and bool(memory["gpu_total_bytes"]) == on_gpu}


def _is_valid(sweep: Sweep, values: Values) -> bool:
    try:
        sweep.recipe_for(values, sweep.study.seed)
    except UserError:
        return False
    return True
