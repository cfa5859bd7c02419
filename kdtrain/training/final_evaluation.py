"""The test split, read once for each training that kept its weights."""

import io

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.needed_trainings import recipes_by_teacher, teacher_recipe
from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.models.build import build
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime import distributed
from kdtrain.teacher.ensemble import combined_logits
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import accuracy, logits_of, pair_metrics, student_metrics, tta_logits
from kdtrain.training.precision import backend_settings
from kdtrain.trials.arrays import read_predictions
from kdtrain.trials.records import Outcome
from kdtrain.trials.store import PREDICTIONS, TrialFolder
from kdtrain.trials.workspace import Workspace


def read_test(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Evaluate a complete training that kept its weights on the test split, once; return its outcome with test metrics.

    Test and validation logits are written to predictions.npz.
    """
    data = workspace.dataset(recipe.data)
    with workspace.reserved_trial(recipe) as trial, backend_settings(recipe.precision, workspace.device):
        outcome = trial.outcome()
        assert outcome is not None
        assert outcome["state"] == "complete"
        if outcome["test"] is not None and trial.is_whole(PREDICTIONS):
            return outcome
        logits, outcome["test"] = _evaluated(recipe, data, trial, workspace)
        distributed.barrier()  # all ranks have read the outcome that rank 0 now writes
        if distributed.rank() == 0:
            arrays = logits | {"val_labels": data.val.labels, "test_labels": data.test.labels}
            trial.write_predictions(arrays_file({name: value.numpy() for name, value in arrays.items()}))
            trial.write_outcome(outcome)
        distributed.barrier()
        return trial.outcome() or outcome  # with the digests of the files


def _evaluated(
    recipe: Recipe, data: Dataset, trial: TrialFolder, workspace: Workspace
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return logits [N, K] by name and the metrics of the test split."""
    device = workspace.device
    network = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False).to(device)
    load_whole_network(network, trial.weights, "recipe.student")
    logits = {
        "val_logits": logits_of(network, data.val, device),
        "test_logits": logits_of(network, data.test, device),
    }
    metrics = student_metrics(logits["test_logits"], data.test.labels)
    test: dict[str, float] = {f"test/{name}": value for name, value in metrics.items()} | {"images": len(data.test)}
    ten_crop = tta_logits(network, data.test, device)
    if ten_crop is not None:
        logits["test_tta_logits"] = ten_crop
        metrics = student_metrics(ten_crop, data.test.labels)
        test |= {f"test_tta/{name}": value for name, value in metrics.items()}
    if recipe.teacher is not None:
        by_teacher = [_teacher_test_logits(each, data, workspace) for each in recipes_by_teacher(recipe)]
        teacher = combined_logits(recipe, by_teacher)
        if recipe.ensemble is not None:
            for i, own in enumerate(by_teacher, 1):
                test[f"test/teacher_{i}_accuracy"] = accuracy(own, data.test.labels)
        pair = pair_metrics(logits["test_logits"], teacher, recipe.seed, 0, recipe.batch_size)
        test |= {f"test/{name}": value for name, value in pair.items()}
        test["test/teacher_accuracy"] = student_metrics(teacher, data.test.labels)["accuracy"]
    return logits, test


def _teacher_test_logits(recipe: Recipe, data: Dataset, workspace: Workspace) -> Tensor:
    """Return the one teacher's test logits [N, K], read if it was evaluated on the same test split, else computed."""
    trained_by = teacher_recipe(recipe)
    if trained_by is not None and trained_by.data == recipe.data:
        kept = read_predictions(workspace.trial(trained_by, "recipe.teacher"))
        if "test_logits" in kept:
            return torch.from_numpy(kept["test_logits"])
    teacher = trained_teacher(recipe, data, workspace)
    return logits_of(teacher.network, data.test, workspace.device)


def arrays_file(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
