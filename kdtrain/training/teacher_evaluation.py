"""The validation accuracy of a finished teacher, measured once for each folder of results."""

import math
from typing import cast

from kdtrain.config.recipe import Recipe
from kdtrain.errors import UserError
from kdtrain.models.build import parameter_count
from kdtrain.runtime import distributed, process
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import logits_of, student_metrics
from kdtrain.training.precision import backend_settings
from kdtrain.trials.identity import NUMERICS
from kdtrain.trials.outcome import outcome_row
from kdtrain.trials.records import BestEpoch, DataSummary, Environment, Outcome, RecipeRecord
from kdtrain.trials.workspace import Workspace, reserved


def evaluate_teacher(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Evaluate the one, finished teacher of a recipe on the validation split, in float32; return the outcome.

    The store keeps it like the outcome of a training of 0 epochs, and a second call reads it there.

    Raises:
        UserError: The teacher's weights are absent or do not fit, or its logits are not finite.
    """
    (config,) = recipe.teachers
    data = workspace.dataset(recipe.data)
    with reserved(workspace.finished_teacher(recipe)) as trial, backend_settings("fp32", workspace.device):
        outcome, _ = trial.standing()  # what is damaged is written again
        if outcome is not None:
            return outcome
        teacher = trained_teacher(recipe, data, workspace)
        assert teacher.reference is not None
        logits_NK = logits_of(teacher.network, data.val, workspace.device)
        metrics = student_metrics(logits_NK, data.val.labels)
        if not all(map(math.isfinite, metrics.values())):
            raise UserError(
                f"recipe.teacher.trained: {config.trained} gives logits that are not finite; name other weights"
            )
        record: RecipeRecord = {
            "numerics": NUMERICS,
            "trial_id": trial.trial_id,
            "recipe": {
                "data": recipe.data.model_dump(mode="json"),
                "student": config.model_dump(mode="json"),
                "method": {"name": "none"},
                "objective": recipe.objective,
                "seed": config.seed,
            },
            "teacher": None,
            "finished": teacher.reference,
            "weights": None,
            "data": cast(DataSummary, data.summary()),
            "parameters": parameter_count(teacher.network),
            "environment": cast(Environment, process.describe(workspace.device, distributed.size())),
        }
        best = {"epoch": 0, **{f"val/{name}": value for name, value in metrics.items()}}
        distributed.barrier()  # all ranks have read the outcome that rank 0 now writes
        if distributed.rank() == 0:
            trial.write_recipe(record)
        distributed.barrier()
        outcome = outcome_row("complete", None, trial)
        outcome["best"] = cast(BestEpoch, best)
        if distributed.rank() == 0:
            trial.write_outcome(outcome)
        return outcome
