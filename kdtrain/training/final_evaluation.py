"""The test split, read once per training that kept its weights: its logits and what they tell."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import load
from kdtrain.models.build import build
from kdtrain.models.weights import load_whole_network
from kdtrain.runtime import distributed
from kdtrain.teacher.network import trained_teacher
from kdtrain.training.evaluation import logits_of, pair_metrics, student_metrics, tta_logits
from kdtrain.trials.identity import trial_id
from kdtrain.trials.records import Outcome
from kdtrain.trials.store import Store


def read_test(recipe: Recipe, store: Store, data_root: Path, device: torch.device) -> Outcome:
    """Reads the test split of a training that kept its weights, once: its logits and those of validation are written,
    its metrics join the outcome, which is returned."""
    data = load(recipe.data, data_root)
    folder = store.trial(trial_id(recipe, data_root))
    with folder.lock() if distributed.rank() == 0 else nullcontext():
        distributed.barrier()
        outcome = folder.outcome()
        assert outcome is not None
        assert outcome["state"] == "complete"
        if outcome["test"] is not None:
            return outcome
        network = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False).to(device)
        load_whole_network(network, folder.weights, "recipe.student")
        logits = {
            "val_logits": logits_of(network, data.val, device),
            "test_logits": logits_of(network, data.test, device),
        }
        augmented = tta_logits(network, data.test, device)
        metrics = student_metrics(logits["test_logits"], data.test.labels)
        test: dict[str, float] = {f"test/{name}": value for name, value in metrics.items()} | {"images": len(data.test)}
        if augmented is not None:
            logits["test_tta_logits"] = augmented
            metrics = student_metrics(augmented, data.test.labels)
            test |= {f"test_tta/{name}": value for name, value in metrics.items()}
        teacher = _teacher_test_logits(recipe, data, store, data_root, device)
        if teacher is not None:
            pair = pair_metrics(logits["test_logits"], teacher, recipe.seed, 0, recipe.batch_size)
            test |= {f"test/{name}": value for name, value in pair.items()}
            test["test/teacher_accuracy"] = student_metrics(teacher, data.test.labels)["accuracy"]
        outcome["test"] = test
        distributed.barrier()  # all have read the outcome that rank 0 now writes
        if distributed.rank() == 0:
            arrays = logits | {"val_labels": data.val.labels, "test_labels": data.test.labels}
            folder.write_predictions(arrays_file({name: value.numpy() for name, value in arrays.items()}))
            folder.write_outcome(outcome)
        return outcome


def _teacher_test_logits(
    recipe: Recipe, data: Dataset, store: Store, data_root: Path, device: torch.device
) -> Tensor | None:
    """[N, K] of the recipe's teacher: as it has left them when its own test split was read, else computed."""
    taught_by = teacher_recipe(recipe)
    if taught_by is not None:
        predictions = store.trial(trial_id(taught_by, data_root, "recipe.teacher")).predictions
        if predictions.exists():
            with np.load(predictions) as kept:
                return torch.from_numpy(kept["test_logits"])
    teacher = trained_teacher(recipe, data, store, data_root, device)
    return logits_of(teacher.network, data.test, device) if teacher is not None else None


def arrays_file(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
