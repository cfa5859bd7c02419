"""Preflight checks: what can fail fails here, before anything long is trained."""

from pathlib import Path

import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.base import Dataset
from kdtrain.errors import UserError
from kdtrain.models.weights import load_whole_network
from kdtrain.teacher.network import Teacher, untrained_teacher
from kdtrain.training.assembly import assemble, require_statistics
from kdtrain.training.epoch_metrics import NonFiniteLoss
from kdtrain.training.loop import train_step
from kdtrain.training.precision import backend_settings
from kdtrain.trials.workspace import Workspace


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
    """Check a student's and its teacher's training before a teacher is trained, which may take days.

    Nothing is written, and nothing is done if the teacher has been trained already.

    Raises:
        UserError: What the trainings would raise, in the words of this recipe.
    """
    trained_by = teacher_recipe(recipe)
    if trained_by is None or workspace.trial(trained_by, "recipe.teacher").has_weights():
        return
    assert recipe.teacher is not None
    data = workspace.dataset(recipe.data)
    check_images(data)
    network = untrained_teacher(recipe.teacher, data, pretrained=True)
    require_statistics(
        len(data.train), trained_by.batch_size, trained_by.batch_norm, network, workspace.device,
        "recipe.teacher.batch_size",
    )  # fmt: skip
    assemble(recipe, data, Teacher(network, workspace.device, recipe.method.needed_stages), workspace.device)
    require_students_turn(recipe, len(data.train))


def smoke(recipe: Recipe, workspace: Workspace) -> None:
    """Train one real batch through student, teacher and method, in each player's turn. Write nothing.

    The teacher's weights are read if they come from a file and random if it is yet to be trained. Raises what a
    training would raise.
    """
    data = workspace.dataset(recipe.data)
    check_images(data)
    with backend_settings(recipe.precision, workspace.device):
        state = assemble(recipe, data, _teacher_for_smoke(recipe, data, workspace.device), workspace.device)
        require_students_turn(recipe, len(data.train))
        state.distiller.train()
        terms: dict[str, Tensor] = {}
        for step in (0,) if state.critic is None else (0, state.critic.turns.critic_steps):
            state.step = step
            terms |= train_step(state, torch.arange(min(recipe.batch_size, len(data.train))), step)
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"not finite on the first batch: {', '.join(broken)}")


def _teacher_for_smoke(recipe: Recipe, data: Dataset, device: torch.device) -> Teacher | None:
    if recipe.teacher is None:
        return None
    network = untrained_teacher(recipe.teacher, data)
    if recipe.teacher.trained is not None:
        file = Path(recipe.teacher.trained)
        load_whole_network(network, file, "recipe.teacher.trained", recipe.teacher.weights_key)
    return Teacher(network, device, recipe.method.needed_stages)
