"""Carry a study out in this process, one job after another, without Ray: for a debugger, notebooks and tests."""

from collections.abc import Callable

from kdtrain.errors import UserError
from kdtrain.study.study import Job, Study
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.preflight import smoke
from kdtrain.training.trainer import train
from kdtrain.trials.workspace import Workspace
from kdtrain.visualization.pictures import draw_arrays


class _Stopped(BaseException):
    """The end of a training that the study has pruned; the trainer takes it for no failure of the recipe."""


def execute(study: Study) -> None:
    """Carry out every job of a study that is still to do.

    A job that breaks counts as failed, as in every executor, and is tried again when the study is opened again. Nothing
    of the process is set: the number of threads and the precision are the caller's.

    Args:
        study: An opened study; its trainings run on the device of its workspace.

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


def run_job(study: Study, job: Job) -> str | None:
    """Carry out one job in this process.

    Args:
        study: The study that has handed the job out.
        job: The job.

    Returns:
        The reason why the job broke, or None.
    """
    try:
        _carry_out(study, job)
    except _Stopped:
        pass
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _carry_out(study: Study, job: Job) -> None:
    workspace = Workspace(study.store, study.data_root)
    match job.kind:
        case "smoke":
            smoke(job.recipe, workspace)
        case "train":
            resources = study.sweep.resources
            train(
                job.recipe, workspace,
                final=job.final, on_epoch=_pruning(study, job),
                checkpoint_every_steps=resources.checkpoint_every_steps, loaders=resources.loaders,
            )  # fmt: skip
        case "test":
            for recipe in job.also:
                read_test(recipe, workspace)
        case "pictures":
            draw_arrays(job.recipe, workspace, study.journal.files, job.also)


def _pruning(study: Study, job: Job) -> Callable[[Metrics], None]:
    """Return a callback that stops the training after an epoch at which the study prunes it."""

    def on_epoch(metrics: Metrics) -> None:
        if study.should_prune(job, int(metrics["epoch"])):
            raise _Stopped

    return on_epoch
