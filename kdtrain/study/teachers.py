"""The stage `teacher`: each teacher of the space is trained once, or evaluated if it is finished."""

from dataclasses import replace

from kdtrain.config import space
from kdtrain.config.parameter import Values
from kdtrain.config.recipe import recipes_by_teacher, teacher_recipe
from kdtrain.errors import NoResult
from kdtrain.models.config import WeightsFile
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import Job, TrainingStream, advice

TEACHER_PARTS = ("data", "teacher", "student")
"""The parts of a recipe that decide which teacher is trained; its model may be the student's."""


def train_teachers(book: Bookkeeping) -> TrainingStream:
    """Train each teacher of the space that the store does not have, and evaluate each finished one.

    Raises:
        NoResult: A teacher has failed or broken.
    """
    sweep = book.sweep
    points: dict[str, tuple[Job, Values]] = {}  # by trial_id
    for values in space.combinations(sweep.tree, TEACHER_PARTS):
        for recipe in recipes_by_teacher(sweep.recipe_for(values, sweep.study.seed)):
            trained_by = teacher_recipe(recipe)
            job = book.job("teacher", len(points), trained_by or recipe, final=True)
            if trained_by is None:
                job = replace(job, kind="evaluate", trial_id=book.workspace.finished_teacher(recipe).trial_id)
            points.setdefault(job.trial_id, (job, values))
    jobs = [job for job, _ in points.values()]
    for job in jobs:
        student, weights = job.recipe.student, job.recipe.student.weights
        if job.kind == "train" and isinstance(weights, WeightsFile) and weights.part == "network":
            book.remarks.append(
                f"teacher {student.model}: its training goes on from {weights.file}; if it is finished, write"
                f" teacher: {{model: {student.model}, trained: {weights.file}}}"
            )
    yield from book.run_stage(jobs)
    problems: list[str] = []
    models = [job.recipe.student.model for job in jobs if job.kind == "train"]
    for job, values in points.values():
        end = book.ends[job.key]
        if end["state"] == "complete":
            seed = f" (seed {job.recipe.seed})" if models.count(job.recipe.student.model) > 1 else ""
            book.remarks.append(_accuracy_remark(book, job, seed))
        else:
            done = "evaluating the teacher" if job.kind == "evaluate" else f"training {job.recipe.student.model}"
            what = "broke" if end["state"] == "broken" else "failed"
            reason = str(end["reason"]).replace("recipe.student", "recipe.teacher")  # it is its recipe's student
            text = f"{done} {what}: {reason}{book.traceback_of(end)}; {advice([end])}"
            problems += sweep.error(values, ("teacher",), text).problems
    if problems:
        raise NoResult(*problems)
    return [job for job in jobs if job.kind == "train"]


def _accuracy_remark(book: Bookkeeping, job: Job, seed: str) -> str:
    """Return a sentence about a teacher's validation accuracy; `seed` tells one training of a model from another."""
    finished = job.recipe.teachers  # of an evaluation; a training is that of a student alone
    name = f"{finished[0].model} from {finished[0].trained}" if finished else job.recipe.student.model + seed
    accuracy, chance = book.accuracy(job)
    return ", ".join(filter(None, (f"teacher {name}: validation accuracy {accuracy:.2%}", chance)))
