"""The stage `teacher`: each teacher of the space is trained once, or evaluated if it is finished."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdtrain.config import space
from kdtrain.config.needed_trainings import at_teacher, needed_trainings, recipes_by_teacher, teacher_recipes
from kdtrain.config.parameter import Values
from kdtrain.config.recipe import Recipe
from kdtrain.errors import NoResult
from kdtrain.models.config import WeightsFile
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import Job, TrainingStream, advice

TEACHER_PARTS = ("data", "teacher", "student")
"""The parts of a recipe that decide which teacher is trained; its model may be the student's."""


def train_teachers(book: Bookkeeping) -> TrainingStream:
    """Train each teacher of the space that the store does not have, and evaluate each finished one.

    A teacher's own teacher comes before it.

    Raises:
        NoResult: A teacher has failed or broken.
    """
    sweep = book.sweep
    found: dict[str, _TeacherJob] = {}  # by trial_id
    for values in space.combinations(sweep.tree, TEACHER_PARTS):
        for recipe, above in needed_trainings(sweep.recipe_for(values, sweep.study.seed)):
            for by_teacher in recipes_by_teacher(recipe):
                if by_teacher.teachers[0].trained is not None:
                    job = book.job("teacher", len(found), by_teacher, final=True)
                    job = replace(job, kind="evaluate", trial_id=book.workspace.finished_teacher(by_teacher).trial_id)
                    found.setdefault(job.trial_id, _TeacherJob(job, values, 0, (by_teacher, *above)))
            if above:
                job = book.job("teacher", len(found), recipe, final=True)
                found.setdefault(job.trial_id, _TeacherJob(job, values, _height(recipe), above))
    jobs = [each.job for each in found.values()]
    for job in jobs:
        student, weights = job.recipe.student, job.recipe.student.weights
        if job.kind == "train" and isinstance(weights, WeightsFile) and weights.part == "network":
            book.remarks.append(
                f"teacher {student.model}: its training goes on from {weights.file}; if it is finished, write"
                f" teacher: {{model: {student.model}, trained: {weights.file}}}"
            )
    models = [job.recipe.student.model for job in jobs if job.kind == "train"]
    if jobs:
        book.stage, book.stage_size = "teacher", len(jobs)
    for height in sorted({each.height for each in found.values()}):
        own = [each for each in found.values() if each.height == height]
        yield from book.run([each.job for each in own])
        problems: list[str] = []
        for each in own:
            if book.ends[each.job.key]["state"] == "complete":
                is_one_of_several = models.count(each.job.recipe.student.model) > 1
                book.remarks.append(_accuracy_remark(book, each.job, with_seed=is_one_of_several))
            else:
                problems += sweep.error(each.values, ("teacher",) * len(each.above), _failure(book, each)).problems
        if problems:
            raise NoResult(*problems)
    return [job for job in jobs if job.kind == "train"]


@dataclass(frozen=True)
class _TeacherJob:
    """A training or an evaluation of a teacher.

    `values` is the first point of the space that has it, `height` the length of the longest chain of teachers
    that are trained before, `above` the recipes that it is needed for: that of the teacher which it teaches, ..., that
    of the student.
    """

    job: Job
    values: Values
    height: int
    above: Sequence[Recipe]


def _height(recipe: Recipe) -> int:
    return max((1 + _height(teacher) for teacher in teacher_recipes(recipe)), default=0)


def _failure(book: Bookkeeping, teacher: _TeacherJob) -> str:
    """Return a sentence about a teacher's training or evaluation that has failed or broken."""
    job, end = teacher.job, book.ends[teacher.job.key]
    done = "evaluating the teacher" if job.kind == "evaluate" else f"training {job.recipe.student.model}"
    what = "broke" if end["state"] == "broken" else "failed"
    reason = str(end["reason"])
    for recipe in teacher.above if job.kind == "train" else teacher.above[1:]:
        reason = at_teacher(reason, recipe)
    return f"{done} {what}: {reason}{book.traceback_of(end)}; {advice([end])}"


def _accuracy_remark(book: Bookkeeping, job: Job, *, with_seed: bool) -> str:
    """Return a sentence about a teacher's validation accuracy; the seed tells one training of a model from another."""
    recipe, its_teachers = job.recipe, job.recipe.teachers
    about = [f"seed {recipe.seed}"] if with_seed else []
    if its_teachers:
        taught_by = its_teachers[0].model if len(its_teachers) == 1 else f"an ensemble of {len(its_teachers)}"
        about.append(f"taught by {taught_by}, {recipe.method.name}")
    name = recipe.student.model + (f" ({'; '.join(about)})" if about else "")
    if job.kind == "evaluate":
        name = f"{its_teachers[0].model} from {its_teachers[0].trained}"
    accuracy, chance = book.accuracy(job)
    return ", ".join(filter(None, (f"teacher {name}: validation accuracy {accuracy:.2%}", chance)))
