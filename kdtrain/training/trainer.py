"""train(): one recipe, from its folder in the store to its outcome."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import cast

import safetensors.torch
from torch import Tensor

from kdtrain.config.needed_trainings import recipes_by_teacher
from kdtrain.config.recipe import Recipe
from kdtrain.methods.base import TeacherReading
from kdtrain.models.build import parameter_count
from kdtrain.runtime import distributed, process
from kdtrain.teacher.cached import cached_teacher
from kdtrain.teacher.network import trained_teachers
from kdtrain.teacher.own_data import shared_images
from kdtrain.training.assembly import assemble
from kdtrain.training.epoch_metrics import Metrics, NonFiniteLoss
from kdtrain.training.loop import fit
from kdtrain.training.precision import backend_settings
from kdtrain.training.preflight import check_images, require_students_turn
from kdtrain.training.state import TrainState, epoch_of
from kdtrain.trials.identity import NUMERICS
from kdtrain.trials.outcome import outcome_row, require_own_workers
from kdtrain.trials.records import DataSummary, Environment, Outcome, RecipeRecord, State, TeacherReference
from kdtrain.trials.store import WEIGHTS, TrialFolder
from kdtrain.trials.workspace import Workspace

SMALL_CHECKPOINT_BYTES = 8 << 20
CHECKPOINT_BYTES_PER_S = 2.5e6
"""Upper bound of the average rate of larger checkpoints: about 1 % of a training's time on one core, and what hundreds
of trainings at once may ask of a shared disk."""
WRITING_SHARE = 0.02
"""Upper bound of the share of a training's time that writing checkpoints takes if storage is slower than that."""
TEACHER_COSTS = ("teacher_images_computed", "teacher_images_checked", "teacher_seconds", "teacher_forward_seconds")


def train(
    recipe: Recipe,
    workspace: Workspace,
    *,
    final: bool = False,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
    checkpoint_every_steps: int | None = None,
    loaders: int = 0,
    shared_readings: Sequence[TeacherReading] = (),
) -> Outcome:
    """Train a recipe to its outcome; continue a training that was cut off, return the outcome of one that has ended.

    A teacher must have been trained before. The test split is never read here; see `final_evaluation.read_test`.
    Neither the workspace's cache (on a CPU) nor `loaders`, nor where a training is cut, changes a bit of the result.

    Args:
        recipe: The recipe.
        workspace: Store, data root, device and the node's cache.
        final: Whether to keep the best epoch's weights.
        on_epoch: Called on every rank after the row and the checkpoint of an epoch are written (see `is_due`).
        checkpoint_every_steps: Steps between checkpoints within an epoch; every epoch then ends with one too.
        loaders: Processes that make the training's views.
        shared_readings: Readings of all methods of the sweep, which share the cached teacher outputs.

    A non-finite loss is an outcome, `failed`. Any other exception is raised and leaves none: the training can be
    continued.

    Raises:
        UserError: The user can mend it: data, weights or parts of the recipe that do not fit.
    """
    data = workspace.dataset(recipe.data)
    with workspace.reserved_trial(recipe) as trial, backend_settings(recipe.precision, workspace.device):
        require_own_workers(recipe, trial, distributed.size())
        earlier, damage = trial.standing()
        if damage is not None:
            logging.getLogger(__name__).warning("%s; it is trained again", damage)
        if earlier is not None and _serves(earlier, final, trial):
            return earlier
        process.reset_peak_memory(workspace.device)
        # searched trials leave the test split's images alone; preflight checks them
        decoded_here = data.share(workspace.cache, test=final) if workspace.cache is not None else None
        if decoded_here is not None:
            logging.getLogger(__name__).warning("images are decoded in every process: %s", decoded_here)
        check_images(data, test=final)
        teachers = trained_teachers(recipe, data, workspace)
        for teacher, each in zip(teachers, recipes_by_teacher(recipe), strict=True):
            shared = shared_images(each, data, workspace)
            if teacher.reference is not None and shared is not None:
                teacher.reference["shared_images"] = shared
        share_outputs = partial(
            cached_teacher, cache=workspace.cache, shared=shared_readings, check_seed=trial.trial_id
        )
        state = assemble(recipe, data, teachers, workspace.device, loaders=loaders, share_outputs=share_outputs)
        require_students_turn(recipe, len(data.train))
        _resume(state, trial, _recipe_record(state, trial.trial_id))
        with closing(state.loader), closing(state.teacher_outputs) if state.teacher_outputs else nullcontext():
            ended, reason = _fit(state, trial, on_epoch, checkpoint_every_steps)
        outcome = outcome_row(ended, reason, trial)
        cache_off = state.teacher_outputs.off_reason if state.teacher_outputs else None
        outcome |= {"teacher_cache_off": cache_off, "image_cache_off": decoded_here}
        if distributed.rank() == 0:
            _finish(trial, outcome, state.best_weights if final and ended == "complete" else None)
        distributed.barrier()
        return outcome


def is_due(checkpoint_bytes: int, seconds: float, writing_s: float) -> bool:
    """Return True if an epoch ends with a checkpoint, `seconds` after the last one, whose writing took `writing_s`.

    A small one is always written, a large one when what a kill would lose is worth its writing: the 285 MB of a
    ResNet50's training are due every two minutes, or every ten if they take 12 s on their way to a URL.
    """
    affordable = checkpoint_bytes <= seconds * CHECKPOINT_BYTES_PER_S and writing_s <= seconds * WRITING_SHARE
    return checkpoint_bytes <= SMALL_CHECKPOINT_BYTES or affordable


def _serves(outcome: Outcome, final: bool, trial: TrialFolder) -> bool:
    """Return True if a training would end with this outcome. `pruned` is a study's decision and is trained on."""
    if outcome["state"] == "complete":
        return not final or trial.is_whole(WEIGHTS)
    return bool(outcome["state"] == "failed")


def _resume(state: TrainState, trial: TrialFolder, record: RecipeRecord) -> None:
    """Restore the newest whole checkpoint whose epochs all have their rows, and prepare the trial's folder.

    A power cut may have lost rows that a later checkpoint counts. Epochs that are trained again keep what they have
    cost of the teacher's time: their outputs may be cached.
    """
    rows = trial.sound_epochs()
    saved = next((each for each in trial.checkpoints() if epoch_of(each) <= len(rows)), None)
    if saved is not None:
        state.restore(saved)
    distributed.barrier()  # all ranks have read what rank 0 now writes
    if distributed.rank() == 0:
        trial.remove_temporary()
        for row in cast(list[Metrics], rows):
            if row["epoch"] > state.epoch:
                state.progress.charge({name: row[name] for name in TEACHER_COSTS if name in row})
        trial.remove_outcome()
        trial.write_recipe(record)
        trial.keep_epochs(state.epoch)


class _Checkpoints:
    """The writing of a trial's checkpoints by rank 0."""

    def __init__(self, trial: TrialFolder) -> None:
        self._trial = trial
        self._written_at, self._writing_s = time.monotonic(), 0.0

    def write(self, state: TrainState) -> None:
        if distributed.rank() == 0:
            started = time.monotonic()
            self._trial.write_checkpoint(state.step, state.checkpoint())
            self._written_at = time.monotonic()
            self._writing_s = self._written_at - started

    def is_due(self, state: TrainState) -> bool:
        return is_due(state.checkpoint_bytes(), time.monotonic() - self._written_at, self._writing_s)


def _fit(
    state: TrainState, trial: TrialFolder, on_epoch: Callable[[Metrics], None], every_steps: int | None
) -> tuple[State, str | None]:
    """Train with rows and checkpoints in the trial's folder; return how the training has ended, and why."""
    checkpoints = _Checkpoints(trial)

    def report(metrics: Metrics, state: TrainState) -> None:
        metrics["peak_memory_bytes"] = process.peak_memory_bytes(state.device)
        if distributed.rank() == 0:
            trial.append_epoch(metrics)
            if every_steps or checkpoints.is_due(state):
                checkpoints.write(state)
        distributed.barrier()  # every rank sums up the rows in the end
        on_epoch(metrics)

    try:
        fit(state, state.recipe.epochs, report, checkpoint=checkpoints.write, every_steps=every_steps)
    except NonFiniteLoss as error:
        return "failed", str(error)
    return "complete", None


def _finish(trial: TrialFolder, outcome: Outcome, best_weights: dict[str, Tensor] | None) -> None:
    """Write the weights that are kept, then the outcome, and remove the checkpoints."""
    if best_weights is not None:
        weights = {name: value.cpu().contiguous() for name, value in best_weights.items()}
        trial.write_weights(safetensors.torch.save(weights))
    if trial.outcome() is None:  # otherwise the study has pruned it meanwhile
        trial.write_outcome(outcome)
    trial.remove_checkpoints()


def _recipe_record(state: TrainState, trial_id: str) -> RecipeRecord:
    recipe = state.recipe
    return {
        "numerics": NUMERICS,
        "trial_id": trial_id,
        "recipe": recipe.model_dump(mode="json"),
        "teacher": _teacher_reference(state),
        "weights": list(recipe.method.balance.weights) if hasattr(recipe.method, "balance") else None,
        "data": cast(DataSummary, state.data.summary()),
        "parameters": parameter_count(state.distiller.student),
        "environment": cast(Environment, process.describe(state.device, distributed.size())),
    }


def _teacher_reference(state: TrainState) -> TeacherReference | None:
    references = [teacher.reference for teacher in state.teachers if teacher.reference is not None]
    if state.recipe.ensemble is not None:
        return {"members": references}
    return next(iter(references), None)
