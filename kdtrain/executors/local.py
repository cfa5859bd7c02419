"""Carry a study out in this process, one job after another, without Ray: for a debugger, notebooks and tests."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdtrain.config.recipe import Recipe
from kdtrain.errors import UserError
from kdtrain.storage.folder import Folder
from kdtrain.study.study import Broken, Job, Study
from kdtrain.training.epoch_metrics import Metrics, NonFiniteLoss
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.preflight import smoke
from kdtrain.training.trainer import train
from kdtrain.trials.workspace import Workspace
from kdtrain.visualization.pictures import draw_arrays


class _Pruned(Exception):
    """The end of a training that the study has pruned."""


def execute(study: Study) -> None:
    """Carry out every job of a study that is still to do, with the caller's number of threads and precision.

    A job that breaks is tried again, as in every executor.

    Raises:
        UserError: A combination of the space cannot run, or the sweep wants several workers for a trial.
        NoResult: A stage has left nothing to go on with.
    """
    workers = study.sweep.resources.workers
    if workers > 1:
        raise UserError(f"resources.workers: must be 1 if a sweep runs in one process, got {workers}")
    for job in study.jobs():
        assert job is not None, "the study waits for a running job, but none runs"
        study.ended(job, run_job(study, job))


def run_job(study: Study, job: Job) -> Broken | None:
    """Carry out one job in this process; return why it broke, or None."""
    resources = study.sweep.resources
    options = {
        "final": job.final,
        "on_epoch": _pruning(study, job),
        "checkpoint_every_steps": resources.checkpoint_every_steps,
        "loaders": resources.loaders,
        "shared_readings": study.sweep.readings() if job.kind == "train" else (),
    }
    try:
        carry_out(job.kind, job.recipe, job.trained, study.workspace, study.journal.files, options)
    except _Pruned:
        pass
    except Exception as error:
        return broken_by(error)
    return None


def broken_by(error: Exception) -> Broken:
    """Return why a job broke: a mistake of the user in its own words, anything else with its type and traceback."""
    if isinstance(error, (UserError, NonFiniteLoss)):  # of a preflight check; a training's is an outcome
        return Broken(str(error), users=True)
    return Broken(sentence(error), "".join(traceback.format_exception(error)))


def sentence(error: BaseException) -> str:
    """Return the type and the text of an exception; the text alone if it is a mistake of the user."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".removesuffix(": ")


def carry_out(
    kind: str,
    recipe: Recipe,
    trained: Sequence[Recipe],
    workspace: Workspace,
    pictures: Folder,
    options: Mapping[str, Any],
) -> None:
    """Do the work of one job; `options` are the arguments of `train`, `trained` the recipes that a job reads."""
    match kind:
        case "smoke":
            smoke(recipe, workspace)
        case "train":
            train(recipe, workspace, **options)
        case "test":
            for each in trained:
                read_test(each, workspace)
        case "pictures":
            draw_arrays(recipe, workspace, pictures, trained)


def _pruning(study: Study, job: Job) -> Callable[[Metrics], None]:
    """Return a callback that stops the training after an epoch at which the study prunes it."""

    def on_epoch(metrics: Metrics) -> None:
        if study.should_prune(job, int(metrics["epoch"])):
            raise _Pruned

    return on_epoch
