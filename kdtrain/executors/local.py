"""Carry a study out in this process, one job after another, without Ray: for a debugger, notebooks and tests."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from kdtrain.config.recipe import Recipe
from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.runtime.device import best_device
from kdtrain.runtime.memory import is_out_of_memory, release_gpu_memory
from kdtrain.storage.cache import Cache, cache_folder
from kdtrain.storage.folder import Folder
from kdtrain.study.jobs import Broken, Job
from kdtrain.study.study import Study
from kdtrain.training.epoch_metrics import Metrics, NonFiniteLoss
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.latency import measure_latency
from kdtrain.training.preflight import smoke, what_would_fit
from kdtrain.training.teacher_evaluation import evaluate_teacher
from kdtrain.training.trainer import train
from kdtrain.trials.records import Measured
from kdtrain.trials.workspace import Workspace
from kdtrain.visualization.pictures import draw_arrays


class _Pruned(Exception):
    """The end of a training that the study has pruned."""


def device_for(resources: Resources) -> torch.device:
    """Return the device of trainings in this process; UserError if a GPU is written and torch has none."""
    if resources.gpus_per_worker == "auto":
        return best_device()
    if resources.gpus_per_worker and not torch.cuda.is_available():
        raise UserError(
            f"resources.gpus_per_worker: torch has no GPU here, got {resources.gpus_per_worker:g}; write auto or 0"
        )
    return torch.device("cuda" if resources.gpus_per_worker else "cpu")


def node_cache(resources: Resources) -> Cache | None:
    """Return this machine's cache of decoded images and teacher outputs, or None if the sweep wants none."""
    return None if resources.teacher_cache == "none" else Cache(cache_folder(), resources.cache_bytes)


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
    study.workspace = replace(study.workspace, cache=node_cache(study.sweep.resources))
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
    broken = None
    try:
        measured = carry_out(job.kind, job.recipe, job.trained, study.workspace, study.journal.files, options)
        if measured is not None:
            study.measured(job, measured)
    except _Pruned:
        pass
    except Exception as error:
        broken = broken_by(error)
    return after_job(broken, job.alone, lambda: what_would_fit(job.recipe, study.workspace))


def after_job(broken: Broken | None, alone: bool, what_would_fit: Callable[[], str]) -> Broken | None:
    """Release the GPU memory of a job that has ended; return why it broke, or None.

    If it ran out of the memory of a GPU that it had for itself, the reason says what would fit there. Call it outside
    the error's `except` clause, because its traceback holds the training's tensors.
    """
    release_gpu_memory()
    if broken is None or not (broken.out_of_memory and alone):
        return broken
    return replace(broken, reason=what_would_fit())


def broken_by(error: Exception) -> Broken:
    """Return why a job broke: a mistake of the user in its own words, anything else with its type and traceback."""
    if isinstance(error, (UserError, NonFiniteLoss)):  # of a preflight check; a training's is an outcome
        return Broken(str(error), users=True)
    text = "".join(traceback.format_exception(error))
    return Broken(sentence(error), text, out_of_memory=is_out_of_memory(error))


def sentence(error: BaseException) -> str:
    """Return a mistake of the user in its own words, and of any other exception the type and the first line."""
    if isinstance(error, UserError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def carry_out(
    kind: str,
    recipe: Recipe,
    trained: Sequence[Recipe],
    workspace: Workspace,
    pictures: Folder,
    options: Mapping[str, Any],
    workers: int = 1,
) -> Measured | None:
    """Do the work of one job; return the memory that a preflight check has measured, or a latency.

    `options` are the arguments of `train`, `trained` the recipes that a job reads, `workers` the processes of a trial.
    """
    match kind:
        case "smoke":
            return smoke(recipe, workspace, workers)
        case "latency":
            return measure_latency(recipe, workspace)
        case "train":
            train(recipe, workspace, **options)
        case "evaluate":
            evaluate_teacher(recipe, workspace)
        case "test":
            for each in trained:
                read_test(each, workspace)
        case "pictures":
            draw_arrays(recipe, workspace, pictures, trained)
    return None


def _pruning(study: Study, job: Job) -> Callable[[Metrics], None]:
    """Return a callback that stops the training after an epoch at which the study prunes it."""

    def on_epoch(metrics: Metrics) -> None:
        if study.should_prune(job, int(metrics["epoch"])):
            raise _Pruned

    return on_epoch
