"""What is tried before anything long is trained: images, turns, batch sizes, one real batch."""

from pathlib import Path

import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import load
from kdtrain.errors import UserError
from kdtrain.models.weights import load_whole_network
from kdtrain.teacher.network import Teacher, fresh_teacher
from kdtrain.training.epoch_metrics import NonFiniteLoss
from kdtrain.training.loop import train_step
from kdtrain.training.state import TrainState, require_statistics
from kdtrain.trials.identity import trial_id
from kdtrain.trials.store import Store


def check_images(data: Dataset, *, test: bool = True) -> None:
    """Every image file of the splits can be read; raises UserError naming the first that cannot."""
    for split in data.splits(test=test):
        split.images.check()


def require_students_turn(run: TrainState) -> None:
    """The critic begins: a student that never had its turn would be judged as it was drawn."""
    turns = run.recipe.method.turns
    if turns is None:
        return
    steps = -(-len(run.data.train) // run.recipe.batch_size)
    span = "epoch" if turns.restart_each_epoch else "training"
    steps *= 1 if turns.restart_each_epoch else run.recipe.epochs
    if steps <= turns.critic_steps:
        raise UserError(
            f"recipe.method.critic_steps: must be below the {steps} steps of the {span}, or the student never has its"
            f" turn; got {turns.critic_steps}"
        )


def check_before_teacher(recipe: Recipe, store: Store, data_root: Path, device: torch.device) -> None:
    """Where a teacher is yet to be trained, which may take days: raises now what the student's training would raise
    afterwards, and what the teacher's own would, in the words of this recipe. Nothing is written."""
    taught_by = teacher_recipe(recipe)
    if taught_by is None or store.trial(trial_id(taught_by, data_root, "recipe.teacher")).has_weights():
        return
    data = load(recipe.data, data_root)
    check_images(data)
    network = fresh_teacher(recipe, data, pretrained=True)
    require_statistics(taught_by, data, network, device, "recipe.teacher.batch_size")
    require_students_turn(TrainState(recipe, data, Teacher(network, device, recipe.method.needed_stages), device))


def smoke(recipe: Recipe, data_root: Path, device: torch.device) -> None:
    """One real batch through student, teacher and method, in each player's turn, nothing written; raises what a
    training would raise.

    The teacher's weights are read where they come from a file and fresh where it is yet to be trained.
    """
    data = load(recipe.data, data_root)
    check_images(data)
    teacher = None
    if recipe.teacher is not None:
        network = fresh_teacher(recipe, data)
        if recipe.teacher.file is not None:
            load_whole_network(network, Path(recipe.teacher.file), "recipe.teacher.file")
        teacher = Teacher(network, device, recipe.method.needed_stages)
    run = TrainState(recipe, data, teacher, device)
    require_students_turn(run)
    run.distiller.train()
    terms: dict[str, Tensor] = {}
    for step in (0,) if run.critic is None else (0, run.critic.turns.critic_steps):  # each player's first turn
        run.step = step
        terms |= train_step(run, torch.arange(min(recipe.batch_size, len(data.train))), step)
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"not finite on the first batch: {', '.join(broken)}")
