"""train(): one recipe from its folder in the store to its outcome."""

import logging
import time
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models.build import parameter_count
from kdtrain.runtime import distributed, process
from kdtrain.storage.folder import Row
from kdtrain.teacher.cache_policy import CachePolicy
from kdtrain.teacher.cached import cached_teacher
from kdtrain.teacher.network import trained_teacher
from kdtrain.teacher.outputs import LiveTeacher
from kdtrain.training.epoch_metrics import Metrics, NonFiniteLoss
from kdtrain.training.loop import fit
from kdtrain.training.preflight import check_images, require_students_turn
from kdtrain.training.state import TrainState
from kdtrain.trials.identity import NUMERICS, file_digest, trial_id
from kdtrain.trials.outcome import outcome_row, require_own_workers
from kdtrain.trials.records import Outcome, State
from kdtrain.trials.store import Store, TrialFolder

SMALL_CHECKPOINT_BYTES = 8 << 20
CHECKPOINT_BYTES_PER_S = 2.5e6
"""On average at most, of larger ones: about 1 % of the time of a training on one core, and what hundreds of them at
once may ask of a shared disk."""
WRITING_SHARE = 0.02
"""Of a training's time at most, where writing is slower than that."""
SPENT_ON_ANSWERS = ("teacher_images_computed", "teacher_images_checked", "teacher_seconds", "teacher_forward_seconds")


def train(
    recipe: Recipe,
    store: Store,
    data_root: Path,
    device: torch.device,
    *,
    final: bool = False,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
    checkpoint_every_steps: int | None = None,
    loaders: int = 0,
    sharing: CachePolicy | None = None,
) -> Outcome:
    """Trains a recipe to its outcome, which is returned; continues what was cut off, returns what has ended.

    final: keep the best epoch's weights, from which `read_test` reads the test split; a training never reads it.
    on_epoch is called on every rank after the row and checkpoint of an epoch are written (see `is_due`).
    checkpoint_every_steps: checkpoints in mid-epoch too, and after every epoch; where a training is cut changes nothing
    of what it gives.
    loaders: processes beside this one that make the training's views; their number changes nothing either.
    sharing: a node's cache of what teachers say; on a CPU it changes no bit.
    A training that breaks ends as `failed` with its reason; what a user can mend (UserError, OSError) is raised.
    """
    data = load(recipe.data, data_root)
    folder = store.trial(trial_id(recipe, data_root))
    with folder.lock() if distributed.rank() == 0 else nullcontext():
        distributed.barrier()
        require_own_workers(recipe, folder, distributed.size())
        ended = folder.outcome()
        if ended is not None and _serves(ended, final, folder):
            return ended
        # the test split's images are decoded by smoke, which refuses what is broken, and by whoever may read it
        decoded_here = data.share(sharing.cache, test=final) if sharing is not None else None
        if decoded_here is not None:
            logging.getLogger(__name__).warning("images are decoded in every process: %s", decoded_here)
        check_images(data, test=final)
        run = TrainState(recipe, data, trained_teacher(recipe, data, store, data_root, device), device, loaders=loaders)
        require_students_turn(run)
        if isinstance(run.teacher_outputs, LiveTeacher):
            run.teacher_outputs = cached_teacher(run.teacher_outputs, sharing)
        _open(run, folder, data_root)
        with closing(run.loader), closing(run.teacher_outputs) if run.teacher_outputs is not None else nullcontext():
            return _train(run, folder, final, on_epoch, checkpoint_every_steps, decoded_here)


def is_due(checkpoint_bytes: int, seconds: float, writing_s: float) -> bool:
    """Whether an epoch ends with a checkpoint, so many seconds after the last one, or after the training began; that
    one took `writing_s`, 0 where there was none.

    Always where it is small; a large one when what a kill would lose is worth its writing. The 285 MB of a ResNet50's
    training are due every two minutes, or every ten where they are 12 s on their way to a URL.
    """
    paid = checkpoint_bytes <= seconds * CHECKPOINT_BYTES_PER_S and writing_s <= seconds * WRITING_SHARE
    return checkpoint_bytes <= SMALL_CHECKPOINT_BYTES or paid


def _open(run: TrainState, folder: TrialFolder, data_root: Path) -> None:
    """The trial's folder made ready, and the run where its newest whole checkpoint left off. What epochs that are done
    again have cost of a teacher's time stays in the accounts: their answers are kept."""
    saved = folder.read_checkpoint()
    if saved is not None:
        run.restore(saved)
    distributed.barrier()  # all have read what rank 0 now writes
    if distributed.rank() == 0:
        rows: list[Row] = [{**row} for row in folder.epochs()]
        for row in rows:
            if row["epoch"] > run.epoch:
                run.progress.charge({name: row[name] for name in SPENT_ON_ANSWERS if name in row})
        folder.remove_outcome()
        folder.write_recipe(_recipe_row(run, folder, data_root))
        folder.keep_epochs(run.epoch)


def _train(
    run: TrainState,
    folder: TrialFolder,
    final: bool,
    on_epoch: Callable[[Metrics], None],
    checkpoint_every_steps: int | None,
    decoded_here: str | None,
) -> Outcome:
    """decoded_here: why this process has decoded its images itself, though they were to be shared."""
    leads = distributed.rank() == 0
    written, writing_s = time.monotonic(), 0.0

    def checkpoint(run: TrainState) -> None:
        nonlocal written, writing_s
        if leads:
            begun = time.monotonic()
            folder.write_checkpoint(run.step, run.checkpoint())
            written = time.monotonic()
            writing_s = written - begun

    def report(metrics: Metrics, run: TrainState) -> None:
        metrics["peak_memory_bytes"] = process.peak_memory_bytes(run.device)
        if leads:
            folder.append_epoch(metrics)
            if checkpoint_every_steps or is_due(run.checkpoint_bytes(), time.monotonic() - written, writing_s):
                checkpoint(run)
        distributed.barrier()  # all ranks sum up the rows in the end
        on_epoch(metrics)

    state: State = "complete"
    reason = None
    try:
        fit(run, run.recipe.epochs, report, checkpoint=checkpoint, every_steps=checkpoint_every_steps)
    except (UserError, OSError):  # a full disk or a closed pipe is no outcome of the recipe: it can be continued
        raise
    except Exception as error:
        if distributed.size() > 1 and not isinstance(error, NonFiniteLoss):
            raise  # of this rank alone: the others wait for it, so the group must end
        if leads:
            folder.write_error(traceback.format_exc())
        state = "failed"
        reason = str(error) if isinstance(error, NonFiniteLoss) else f"{type(error).__name__}: {error}"
    outcome = outcome_row(state, reason, folder)
    outcome |= {
        "teacher_cache_off": run.teacher_outputs.off if run.teacher_outputs else None,
        "image_cache_off": decoded_here,
    }
    if leads:
        if final and state == "complete":
            weights = {name: value.cpu().contiguous() for name, value in run.best_weights.items()}
            folder.write_weights(safetensors.torch.save(weights))
        if folder.outcome() is None:  # else the study has pruned it meanwhile
            folder.write_outcome(outcome)
        folder.remove_checkpoints()
    distributed.barrier()
    return outcome


def _serves(outcome: Outcome, final: bool, folder: TrialFolder) -> bool:
    """Whether an outcome is what a training would end with. A pruned one is some study's choice, no end."""
    if outcome["state"] == "complete":
        return not final or folder.has_weights()
    return bool(outcome["state"] == "failed")


def _recipe_row(run: TrainState, folder: TrialFolder, data_root: Path) -> Row:
    recipe = run.recipe
    taught_by = teacher_recipe(recipe)
    teacher: Row | None = None
    if taught_by is not None:
        teacher = {"trial_id": trial_id(taught_by, data_root)}
    elif recipe.teacher is not None and recipe.teacher.file is not None:
        teacher = {"file": recipe.teacher.file, "sha256": file_digest(recipe.teacher.file)}
    return {
        "numerics": NUMERICS,
        "trial_id": folder.trial_id,
        "recipe": recipe.model_dump(mode="json"),
        "teacher": teacher,
        "weights": list(recipe.method.balance.weights) if hasattr(recipe.method, "balance") else None,
        "data": run.data.summary(),
        "parameters": parameter_count(run.distiller.student),
        "environment": process.describe(run.device, distributed.size()),
    }
