"""Preflight checks: what can fail fails here, before anything long is trained."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kdtrain.config.needed_trainings import (
    at_teacher,
    recipes_by_teacher,
    teacher_places,
    teacher_recipe,
    teacher_recipes,
)
from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.errors import UserError
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime.device import device_name
from kdtrain.runtime.memory import (
    gpu_total_bytes,
    held_by_others_bytes,
    is_out_of_memory,
    peak_memory,
)
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.teacher.own_data import require_same_classes
from kdtrain.training.assembly import assemble, require_statistics
from kdtrain.training.epoch_metrics import NonFiniteLoss
from kdtrain.training.evaluation import first_chunk, logits_of
from kdtrain.training.loop import train_step
from kdtrain.training.precision import backend_settings
from kdtrain.trials.records import MemoryRecord
from kdtrain.trials.workspace import Workspace

GB = 1e9


def check_images(data: Dataset, *, test: bool = True) -> None:
    """Read every image file of the splits; UserError names the first one that cannot be read."""
    for split in data.splits(test=test):
        split.images.check()


def require_students_turn(recipe: Recipe, images: int) -> None:
    """Raise UserError if the critic's first turn never ends, so that the student would never be trained."""
    turns = recipe.method.turns
    if turns is None:
        return
    steps = -(-images // recipe.batch_size)
    span = "epoch" if turns.restart_each_epoch else "training"
    steps *= 1 if turns.restart_each_epoch else recipe.epochs
    if steps <= turns.critic_steps:
        raise UserError(
            f"recipe.method.critic_steps: must be below the {steps} steps of the {span}, otherwise the student never"
            f" has its turn; got {turns.critic_steps}"
        )


def check_before_teacher(recipe: Recipe, workspace: Workspace) -> None:
    """Check a student's and its teachers' trainings before a teacher is trained, which may take days.

    The teachers' own teachers are checked in the same way. Nothing is written, and nothing is done if all teachers have
    been trained already.

    Raises:
        UserError: What the trainings would raise, in the words of this recipe.
    """
    if all(workspace.trial(each, "recipe.teacher").has_weights() for each in teacher_recipes(recipe)):
        return
    data = workspace.dataset(recipe.data)
    check_images(data)
    require_same_classes(recipe, data, workspace)
    teachers = []
    for each in recipes_by_teacher(recipe):
        network = untrained_teacher(each.teachers[0], data, pretrained=True)
        if (trained_by := teacher_recipe(each)) is not None:
            try:
                check_before_teacher(trained_by, workspace)
            except UserError as error:
                raise UserError(*(at_teacher(text, each) for text in error.problems)) from None
            of_teacher = workspace.dataset(trained_by.data)
            check_images(of_teacher)
            require_statistics(
                len(of_teacher.train), trained_by.batch_size, trained_by.batch_norm, network, workspace.device,
                "recipe.teacher.batch_size",
            )  # fmt: skip
        teachers.append(Teacher(network, workspace.device, recipe.method.needed_stages))
    assemble(recipe, data, teachers, workspace.device)
    require_students_turn(recipe, len(data.train))


def smoke(recipe: Recipe, workspace: Workspace, workers: int = 1) -> MemoryRecord:
    """Train real batches through student, teacher and method, in each player's turn, and evaluate both networks.

    A teacher's weights are read if they come from a file and random if it is yet to be trained. Nothing is written.

    Args:
        recipe: The recipe.
        workspace: Data root and device.
        workers: The number of workers that will share a batch: this process takes one worker's share of it.

    Returns:
        The memory that a training needs. Each player makes two updates, because an optimizer allocates its state at the
        end of the first one.

    Raises:
        Exception: What a training would raise.
    """
    data = workspace.dataset(recipe.data)
    check_images(data)
    require_same_classes(recipe, data, workspace)
    device = workspace.device
    with backend_settings(recipe.precision, device), peak_memory(device) as peak:
        state = assemble(recipe, data, _teachers_for_smoke(recipe, data, device), device)
        require_students_turn(recipe, len(data.train))
        state.distiller.train()
        batch = state.loader.batches(0)[0]
        images = batch[: max(len(batch) // workers, min(len(batch), 2))]  # batch normalisation needs two
        terms: dict[str, Tensor] = {}
        for first in (0,) if state.critic is None else (0, state.critic.turns.critic_steps):
            state.step = first
            terms |= train_step(state, images, first)
            state.step = first + 1
            train_step(state, images, first + 1)
        for network in (state.evaluated, *(teacher.network for teacher in state.teachers)):
            logits_of(network, first_chunk(data.val, device), device)
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"not finite on the first batch: {', '.join(broken)}")
    return {
        "device": device_name(device),
        "process_bytes": peak.process_bytes,
        "gpu_bytes": peak.gpu_bytes,
        "gpu_total_bytes": gpu_total_bytes(device),
    }


def what_would_fit(recipe: Recipe, workspace: Workspace) -> str:
    """Return a sentence for a training that ran out of the memory of its GPU, although no other trial was on it.

    The batch size is halved until the updates of a preflight check fit, which takes seconds.
    """
    device, size = workspace.device, recipe.batch_size
    told = f"out of memory on {device_name(device)}"
    if device.type != "cuda":
        return f"{told} with batch_size {size}; write a smaller one"
    told += f" ({gpu_total_bytes(device) / GB:.1f} GB) with batch_size {size}"
    if others := held_by_others_bytes(device):
        told += f"; other processes hold {others / GB:.1f} GB"
    try:
        fits = largest_batch_that_fits(
            size, lambda each: smoke(recipe.model_copy(update={"batch_size": each}), workspace)["gpu_bytes"]
        )
    except Exception:  # such as a batch that is too small for a method: no statement about memory
        return told
    if fits is None:
        return f"{told}; not even batch_size 1 fits"
    return f"{told}; batch_size {fits[0]} fits: its updates take {fits[1] / GB:.1f} GB"


def largest_batch_that_fits(batch_size: int, needed_bytes: Callable[[int], int]) -> tuple[int, int] | None:
    """Return the first of batch_size, batch_size / 2, ... that fits, with the bytes that it needs; None if none fits.

    Args:
        batch_size: The number of images to begin with.
        needed_bytes: Measures the bytes of a batch size; raises torch.OutOfMemoryError if it does not fit.
    """
    while batch_size > 0:
        try:
            return batch_size, needed_bytes(batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        batch_size //= 2
    return None


def _teachers_for_smoke(recipe: Recipe, data: Dataset, device: torch.device) -> list[Teacher]:
    teachers = []
    for place, config in zip(teacher_places(recipe.teacher), recipe.teachers, strict=True):
        network = untrained_teacher(config, data)
        if config.trained is not None:
            load_whole_network(network, Path(config.trained), f"{place}.trained", config.weights_key)
        teachers.append(Teacher(network, device, recipe.method.needed_stages))
    return teachers
