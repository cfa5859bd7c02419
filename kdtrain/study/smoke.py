"""The stage `smoke`: one real batch of every combination that the space can reach, before any long training."""

import re
from collections.abc import Sequence

from kdtrain.config import space
from kdtrain.config.parameter import Values
from kdtrain.config.sweep import Sweep
from kdtrain.errors import UserError
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import JobStream
from kdtrain.trials.records import MemoryRecord

PARTS = ("data", "method", "teacher", "student")
"""The parts of a recipe that must fit together: preflight checks try each of their combinations."""
MEMORY_PARTS = (*PARTS, "mixup", "r_drop", "optimizer", "ema", "precision")
"""The parts of a recipe whose options differ in memory: preflight checks measure each of their combinations, with the
largest batch size."""
OWN_PLACE = re.compile(r"recipe\.([a-z_]+(?:\.[a-z_]+)*): (.*)", re.DOTALL)
"""A mistake of the user that names its own place in the recipe."""


def run_smoke(book: Bookkeeping) -> JobStream:
    """Try a real batch of every combination of the parts that must fit together, and measure the memory.

    Raises:
        UserError: A combination cannot run.
    """
    sweep = book.sweep
    points = preflight_points(sweep)
    recipes = [sweep.recipe_for(values, sweep.study.seed) for values in points]
    jobs = [
        book.job("smoke", number, recipe, values, kind="smoke")
        for number, (recipe, values) in enumerate(zip(recipes, points, strict=True))
    ]
    passed = _passed_checks(book)
    yield from book.run_stage([job for job in jobs if job.trial_id not in passed])
    problems: list[str] = []
    for job, values in zip(jobs, points, strict=True):
        end = book.ends.get(job.key)
        if end is not None and end["state"] == "broken":
            if (mistake := OWN_PLACE.fullmatch(str(end["reason"]))) and not end.get("traceback"):
                problems += sweep.error(values, tuple(mistake[1].split(".")), mistake[2]).problems
                continue
            what = f"{job.recipe.method.name} with student {job.recipe.student.model}"
            what += "".join(f" and teacher {teacher.model}" for teacher in job.recipe.teachers)
            text = f"{what} fails on its first batch: {end['reason']}{book.traceback_of(end)}"
            problems += sweep.error(values, ("method",), text).problems
    if problems:
        raise UserError(*problems)
    now = _passed_checks(book)
    book.memory = most_memory([now.get(job.trial_id) for job in jobs])


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
