"""Trains one recipe in this process, after its teacher; the command `kdtrain train` does the same."""

import os
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdtrain.config.needed_trainings import teacher_recipes
from kdtrain.config.recipe import Recipe
from kdtrain.data.registry import data_folder, load
from kdtrain.errors import NoResult, UserError
from kdtrain.runtime import distributed
from kdtrain.runtime.memory import is_out_of_memory, release_gpu_memory
from kdtrain.runtime.process import cpu_threads
from kdtrain.runtime.torchrun import Group
from kdtrain.storage.mirror import results_folder
from kdtrain.training import trainer
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.preflight import check_before_teacher, what_would_fit
from kdtrain.trials.records import Outcome
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

ONE_TRAINING = threading.RLock()
"""Held while this process trains: initial weights and dropout are drawn from torch's one default generator, so two
trainings in two threads would draw one another's numbers. The second one waits."""
OPTION = re.compile(r"--(results|data|device|address|loaders)\b")


@contextmanager
def arguments_named() -> Iterator[None]:
    """Name arguments in the messages of a UserError, where the command line has options: `device` for `--device`."""
    try:
        yield
    except UserError as error:
        raise type(error)(*(OPTION.sub(r"\1", problem) for problem in error.problems)) from None


RAY_MODE = "RAY_CLIENT_MODE"
"""The variable that the import of Ray sets; those that a running Ray needs are restored when it ends."""


@contextmanager
def process_kept() -> Iterator[None]:
    """Restore what packages change in the caller's process when they are imported or used, Ray above all.

    Ray's folder of packages stays in `sys.path`, because it imports from there later, but behind the caller's folders.
    """
    ray_mode, folders, hook, numbers = os.environ.get(RAY_MODE), list(sys.path), sys.excepthook, random.getstate()
    try:
        yield
    finally:
        if ray_mode is None:
            os.environ.pop(RAY_MODE, None)
        sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
        sys.excepthook = hook
        random.setstate(numbers)


@arguments_named()
@process_kept()
def train(
    recipe: Recipe,
    results: str | Path = "results",
    data: str | Path | None = None,
    device: str | None = None,
    on_epoch: Callable[[Metrics], None] | None = None,
) -> Outcome:
    """Train a recipe, and before it its teachers unless the results have them, and read the test split.

    A training that has ended is not repeated, and one that was cut off continues from its newest checkpoint. As in
    `kdtrain train`, one CPU thread is used.

    Args:
        recipe: The recipe, from `load_recipe` or `StudyResult.winner.recipe`.
        results: Folder or URL of the results.
        data: Folder or URL of the data sets; None takes the environment variable KDTRAIN_DATA.
        device: Device as torch writes it, such as "cpu", "cuda" or "mps"; None takes the GPU if there is one.
        on_epoch: Called after each epoch of teachers and student with its metrics, such as `epoch`, `train/loss`,
            `val/accuracy` (fraction) and `val/nll` (nats). An exception that it raises ends the call; the same call
            continues the training.

    Returns:
        The student's outcome: `state` ("complete" or "failed"), `reason`, `best` (epoch and validation metrics of the
        best epoch) and `test` (metrics of the test split; None if the training failed). A training fails if its loss
        becomes NaN or infinite; any other exception is raised, and the same call continues the training.

    Raises:
        UserError: The recipe does not fit the data, or a file is absent or cannot be written.
        NoResult: A teacher's training failed.

    Example:
        >>> outcome = kdtrain.train(kdtrain.load_recipe("best.yaml"), on_epoch=print)
        >>> outcome["test"]["test/accuracy"]
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe: must be a Recipe, see load_recipe; got {type(recipe).__name__}")
    require_paths(results=results, data="" if data is None else data)
    if on_epoch is not None and not callable(on_epoch):
        raise UserError(f"on_epoch: must be a function of an epoch's metrics, got {type(on_epoch).__name__}")
    workspace = Workspace(Store(results_folder(str(results))), data_folder(data), Group().device(device))
    with ONE_TRAINING, cpu_threads(1):
        load.cache_clear()  # images may have been edited since this process has read them
        check_before_teacher(recipe, workspace)
        *teachers, (_, student) = parts_of(recipe)
        for title, part in teachers:
            outcome = train_part(part, workspace, on_epoch)
            if outcome["state"] != "complete":
                raise NoResult(f"{title}: {outcome['state']}: {outcome['reason']}")
        return train_part(student, workspace, on_epoch)


def require_paths(**arguments: object) -> None:
    """Raise UserError if an argument is neither text nor a path: as text, None would name a folder."""
    for name, value in arguments.items():
        if not isinstance(value, str | Path):
            raise UserError(f"{name}: must be a path or a URL, got {value!r:.80}")


def parts_of(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Return the trainings of a recipe with their titles: its teachers, each after its own, and the student."""
    titles: dict[Recipe, str] = {}
    for teacher, title in _titled_teachers(recipe):
        titles.setdefault(teacher, title)
    return [*((title, teacher) for teacher, title in titles.items()), (recipe.method.name, recipe)]


def _titled_teachers(recipe: Recipe, of: str = "") -> Iterator[tuple[Recipe, str]]:
    teachers = teacher_recipes(recipe)
    for i, teacher in enumerate(teachers, 1):
        title = f"teacher{f' {i} of {len(teachers)}' if len(teachers) > 1 else ''}{of}"
        yield from _titled_teachers(teacher, f" of the {title}")
        yield teacher, title


def train_part(
    part: Recipe, workspace: Workspace, on_epoch: Callable[[Metrics], None] | None, **options: Any
) -> Outcome:
    """Train one recipe, whose teacher is there, and read the test split; return its outcome.

    Raises:
        UserError: The results cannot be written, or the GPU's memory is too small: the sentence says what would fit.
    """
    try:
        if on_epoch is not None:
            options["on_epoch"] = on_epoch
        outcome = trainer.train(part, workspace, final=True, **options)
        return read_test(part, workspace) if outcome["state"] == "complete" else outcome
    except OSError as error:
        results = workspace.store.results.absolute()
        if not isinstance(error.filename, str) or not Path(error.filename).absolute().is_relative_to(results):
            raise
        text = f"cannot be written ({error.strerror}); name another folder with --results"
        raise UserError(f"{workspace.store.folder}: {text}") from None
    except RuntimeError as error:
        if distributed.size() > 1 or not is_out_of_memory(error):
            raise
    release_gpu_memory()  # here the error and its traceback, which holds the training's tensors, are gone
    raise UserError(f"recipe.batch_size: {what_would_fit(part, workspace)}")
